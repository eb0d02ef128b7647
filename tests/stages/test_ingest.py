import gzip
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from data_contracts.errors import UserError
from data_contracts.parquet import read_table
from data_contracts.splits import normalised
from data_contracts.store import Store
from data_contracts.tables import CONTRACTS
from stages.ingest import Config
from stages.runtime.stage import run_stage

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def ingest(tmp_path):
    """Run the stage on {name: (settings, rows or text)}; gives tables by role, and counts."""

    def run(sources, **settings):
        config = Config(sources=[source(tmp_path, *s) for s in sources.items()], **settings)
        result = run_stage("ingest", config, Store.open(tmp_path / "home"))
        return tables_of(result, tmp_path / "home"), result.manifest.metrics

    return run


def source(folder, name, setup):
    settings, content = setup
    path = folder / f"{name}.jsonl"
    if not isinstance(content, str):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(content)
    return {"name": name, "path": path, **settings}


def tables_of(result, home):
    store = Store.open(home)
    return {
        role: read_table(store.local(ref), CONTRACTS[ref.kind.split("/")[0]]).to_pylist()
        for role, ref in result.manifest.outputs.items()
    }


DOCUMENTS = {"role": "documents", "format": "jsonl_text"}
PROMPTS = {"role": "prompts", "format": "prompts"}
QA = {"role": "demonstrations", "format": "qa", "domain": "helpfulness"}
PAIRS = {"role": "preferences", "format": "pairs", "domain": "safety"}


def questions(rows):
    return {normalised(m["content"]) for row in rows for m in row["messages"][:1]}


def test_no_prompt_is_on_two_sides_of_any_table(ingest):
    asked = [f"Question {i}?" for i in range(300)]
    tables, metrics = ingest(
        {
            "qa": (QA, [{"question": q, "answer": "yes"} for q in asked]),
            "ours": (PAIRS, [{"prompt": f" {q}", "chosen": "a", "rejected": "b"} for q in asked]),
            "open": (
                {**PAIRS, "role": "open_preferences"},
                [{"prompt": q.upper(), "chosen": "a", "rejected": "b"} for q in asked],
            ),
            "prompts": (PROMPTS, [{"prompt": q, "domain": "safety"} for q in asked[:200]]),
        },
        prompts_from=["qa", "ours"],
        test_fraction=0.2,
        validation_fraction=0.1,
    )
    pairs = tables["preferences"] + tables["open_preferences"]
    train = questions(tables["demonstrations"])
    for split in ("train", "validation", "test"):
        side = questions(row for row in tables["prompts"] if row["split"] == split)
        assert len(side) > 15
        assert (side <= train) if split == "train" else not (side & train)
        expected = "train" if split == "train" else "test"
        assert {r["split"] for r in pairs if questions([r]) <= side} == {expected}
    held_out = metrics["dropped/demonstrations/qa/held_out_prompt"]
    assert held_out == 300 - len(tables["demonstrations"]) > 50
    # One row for each domain, wherever the prompt came from and however it was spaced.
    assert len(tables["prompts"]) == 600 + 200
    assert metrics["split/prompts/test"] == sum(r["split"] == "test" for r in tables["prompts"])


def test_a_split_that_rows_give_holds_everywhere(ingest):
    tables, _ = ingest(
        {
            "given": (
                PROMPTS,
                [
                    {"prompt": f"q{i}", "domain": "safety", "split": "test" if i < 5 else "train"}
                    for i in range(50)
                ],
            ),
            "qa": (QA, [{"question": f"Q{i} ", "answer": "yes"} for i in range(50)]),
        }
    )
    assert questions(tables["demonstrations"]) == {f"q{i}" for i in range(5, 50)}


def test_contradicting_splits_are_refused(ingest):
    rows = [{"prompt": "q", "domain": "safety", "split": s} for s in ("test", "train")]
    with pytest.raises(UserError, match=r"line 2, field 'split': .*another side"):
        ingest({"given": (PROMPTS, rows)})


def test_rows_keep_what_the_file_says(ingest):
    tables, metrics = ingest(
        {
            "corpus": (
                {**DOCUMENTS, "source_field": "kind"},
                [
                    {"text": " a\tb \n", "kind": "web/1"},
                    {"text": "c", "kind": "books"},
                    {"text": "d", "kind": " "},
                ],
            ),
            "paragraphs": (
                {"role": "documents", "format": "text", "split_at_blank_lines": True},
                "one\ntwo\n\nthree\n",
            ),
            "ours": (
                {**PAIRS, "category": "general"},
                [
                    {
                        "prompt": "q", "chosen": "a", "rejected": "b", "rating": "better",
                        "safety_label": "both_safe", "annotator": "ann", "category": "privacy",
                    },
                    {"prompt": "r", "chosen": "a", "rejected": "b", "domain": "helpfulness"},
                ],
            ),
        },
        test_fraction=0,
        validation_fraction=0,
    )  # fmt: skip
    texts = [(row["source"], row["text"]) for row in tables["documents"]]
    assert texts == [
        ("web/1", " a\tb \n"), ("books", "c"), ("corpus", "d"),
        ("paragraphs", "one\ntwo"), ("paragraphs", "three"),
    ]  # fmt: skip
    first, second = tables["preferences"]
    assert (first["rating"], first["safety_label"]) == ("better", "both_safe")
    assert (first["annotator"], first["category"], first["domain"]) == ("ann", "privacy", "safety")
    assert (second["rating"], second["annotator"]) == (None, "unknown")
    assert (second["category"], second["domain"]) == ("general", "helpfulness")
    assert first["batch"] == 0
    assert tables["prompts"] == tables["open_preferences"] == tables["demonstrations"] == []
    assert metrics["kept/documents/corpus"] == 3


def test_ids_depend_on_content_alone(ingest, tmp_path):
    rows = [{"text": f"document {i}"} for i in range(5)]
    first, _ = ingest({"a": (DOCUMENTS, rows)})
    second, _ = ingest({"b": (DOCUMENTS, rows[::-1])})
    ids = {row["text"]: row["document_id"] for row in first["documents"]}
    assert ids == {row["text"]: row["document_id"] for row in second["documents"]}
    assert len(set(ids.values())) == 5


def test_copies_are_counted_and_left_out(ingest):
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    other_annotator = {**pair, "annotator": "second"}
    tables, metrics = ingest(
        {
            "one": (DOCUMENTS, [{"text": "a"}, {"text": "b"}, {"text": "a"}]),
            "two": (DOCUMENTS, [{"text": "a"}, {"text": "A"}]),
            "ours": (PAIRS, [pair, pair, other_annotator]),
        }
    )
    assert [row["text"] for row in tables["documents"]] == ["a", "b", "A"]
    assert metrics["dropped/documents/one/duplicate"] == 1
    assert metrics["dropped/documents/two/duplicate"] == 1
    assert metrics["dropped/preferences/ours/duplicate"] == 1
    assert len(tables["preferences"]) == 2


def test_near_duplicates_go_when_asked(ingest):
    text = "the river runs past the old mill and the garden behind the house on the hill"
    rows = [{"text": text}, {"text": f"{text} today".upper()}, {"text": text[::-1]}]
    tables, _ = ingest({"a": (DOCUMENTS, rows)})
    assert len(tables["documents"]) == 3
    tables, metrics = ingest({"a": (DOCUMENTS, rows)}, near_duplicate_threshold=0.7)
    assert [row["text"] for row in tables["documents"]] == [rows[0]["text"], rows[2]["text"]]
    assert metrics["dropped/documents/a/near_duplicate"] == 1


def test_empty_texts_stop_the_run_unless_skipped(ingest):
    rows = [{"question": "a", "answer": "b"}, {"question": "c", "answer": " "}]
    with pytest.raises(UserError, match=r"qa\.jsonl, line 2, field 'answer': is empty"):
        ingest({"qa": (QA, rows)})
    _, metrics = ingest({"qa": ({**QA, "skip_empty": True}, rows)})
    assert metrics["dropped/demonstrations/qa/empty"] == 1


def test_max_rows_takes_the_first(ingest):
    rows = [{"text": f"document {i}"} for i in range(5)]
    tables, _ = ingest({"a": ({**DOCUMENTS, "max_rows": 2}, rows)})
    assert [row["text"] for row in tables["documents"]] == ["document 0", "document 1"]


@pytest.mark.parametrize(
    ("settings", "content", "problem"),
    [
        (DOCUMENTS, "", "holds no rows"),
        (
            PAIRS,
            '{"prompt": "a", "chosen": "b", "rejected": "b"}\n' * 2,
            "Not one of the 2 rows of .* identical_responses 2",
        ),
        (DOCUMENTS, '{"text": "a"}\n{"text": 3}\n', "line 2, field 'text': is a number"),
        (DOCUMENTS, '{"text": "a"}\n{"te', "line 2, column .* is not JSON"),
        (PROMPTS, '{"prompt": "a"}\n', "line 1, field 'domain': is missing.*set domain on source"),
        (PAIRS, '{"prompt": "a", "chosen": "b", "rejected": "c", "rating": "x"}', "'rating'"),
    ],
)
def test_malformed_files_are_one_paragraph(ingest, settings, content, problem):
    with pytest.raises(UserError, match=problem) as caught:
        ingest({"bad": (settings, content)})
    assert "bad.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_digest_stands_for_the_file(tmp_path):
    given = source(tmp_path, "a", (DOCUMENTS, [{"text": "a"}]))
    config = Config(sources=[given])
    moved = given["path"].rename(tmp_path / "elsewhere.jsonl")
    assert Config(sources=[{**given, "path": moved}]).meaning() == config.meaning()
    assert Config.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(UserError, match="There is no file"):
        config.sources[0].checked_path()
    given["path"].write_text('{"text": "b"}\n')
    with pytest.raises(UserError, match="has changed since this run was planned"):
        config.sources[0].checked_path()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": "hh"}, "documents come in the formats text, jsonl_text"),
        ({"role": "preferences", "format": "hh"}, "set domain to helpfulness or safety"),
        ({"split_at_blank_lines": True}, "is for format text"),
        ({"role": "prompts", "format": "prompts", "source_field": "x"}, "for format jsonl_text"),
        ({"name": "a b"}, "pattern"),
        ({"path": "nowhere.jsonl"}, "There is no file nowhere.jsonl"),
    ],
)
def test_sources_that_cannot_be(tmp_path, changes, problem):
    given = source(tmp_path, "a", (DOCUMENTS, [{"text": "a"}]))
    with pytest.raises(ValidationError, match=problem):
        Config(sources=[{**given, **changes}])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"prompts_from": ["a"]}, "prompts_from names a"),
        ({"prompts_from": ["b"]}, "prompts_from names b"),
        ({"test_fraction": 0.7, "validation_fraction": 0.7}, "more than 1"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, problem):
    given = source(tmp_path, "a", (DOCUMENTS, [{"text": "a"}]))
    with pytest.raises(ValidationError, match=problem):
        Config(sources=[given], **settings)
    with pytest.raises(ValidationError, match="same name"):
        Config(sources=[given, given])


REAL_SOURCES = {
    "abc_news": (DOCUMENTS, "pretrain/abc_news", 3170),
    "gsm8k": (QA, "sft/gsm8k_train", 7473),
    "outputs": ({**QA, "format": "alpaca"}, "sft/alpaca_eval_outputs", 2415),
    "seed_tasks": ({**QA, "format": "alpaca"}, "sft/alpaca_seed_tasks", 175),
    "hh": (
        {**PAIRS, "format": "hh", "role": "open_preferences"},
        "preferences/hh_harmless_base",
        1900,
    ),
    "alpaca_eval": (
        {**PAIRS, "format": "alpaca_eval", "domain": "helpfulness"},
        "preferences/alpaca_eval_annotations",
        6000,
    ),
}  # fmt: skip


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real data ../shared/data is not there")
def test_published_files_are_accounted_for(tmp_path):
    sources = [
        {"name": name, "path": SHARED_DATA / f"{path}.jsonl.gz", **settings}
        for name, (settings, path, _) in REAL_SOURCES.items()
    ]
    config = Config(sources=sources, prompts_from=["alpaca_eval", "hh"])
    result = run_stage("ingest", config, Store.open(tmp_path))
    metrics = result.manifest.metrics
    for name, (settings, _, num_rows) in REAL_SOURCES.items():
        role = settings["role"]
        counted = [v for k, v in metrics.items() if f"/{role}/{name}" in k]
        assert sum(counted) == num_rows, name
    assert metrics["dropped/preferences/alpaca_eval/tie"] == 435
    assert metrics["dropped/preferences/alpaca_eval/empty"] == 11
    assert metrics["dropped/open_preferences/hh/empty"] == 4
    assert metrics["dropped/open_preferences/hh/differ_in_more_than_the_last_answer"] == 2
    assert metrics["kept/open_preferences/hh"] == 1894
    tables = tables_of(result, tmp_path)
    held_out = questions(r for r in tables["prompts"] if r["split"] != "train")
    assert not held_out & questions(tables["demonstrations"])
    assert {r["annotator"] for r in tables["preferences"]} == {"weighted_alpaca_eval_gpt4_turbo"}


def test_gzipped_sources_work_end_to_end(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(gzip.compress(b'[{"text": "a"},\n {"text": "b"}]'))
    config = Config(sources=[{"name": "a", "path": path, **DOCUMENTS}])
    result = run_stage("ingest", config, Store.open(tmp_path / "home"))
    assert result.manifest.num_rows["documents"] == 2
