"""The world's files: reproducible, disjoint, of the promised make-up and length."""

import json
import re
from collections import Counter
from itertools import islice

import pytest

from data_contracts.errors import UserError
from stages.sandbox.documents import documents
from stages.sandbox.judge import judge_prompt
from stages.sandbox.tasks import (
    CATEGORIES,
    FRAMES,
    count_words,
    is_held_out,
    parse_prompt,
    tasks_of,
)
from stages.sandbox.world import (
    WorldSettings,
    demonstrations,
    open_preferences,
    prompts,
    write_world,
)

SETTINGS = WorldSettings(
    num_documents=600, num_demonstrations=2000, num_prompts=3000, num_open_pairs=1500
)


@pytest.fixture(scope="module")
def demonstration_rows():
    return list(demonstrations(SETTINGS, seed=0))


@pytest.fixture(scope="module")
def prompt_rows():
    return list(prompts(SETTINGS, seed=0))


@pytest.fixture(scope="module")
def open_rows():
    return list(open_preferences(SETTINGS, seed=0))


@pytest.fixture(scope="module")
def document_rows():
    return list(documents(SETTINGS.num_documents, seed=0))


def question_and_answer(row):
    return row["messages"][0]["content"], row["messages"][1]["content"]


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    small = WorldSettings(
        num_documents=20, num_demonstrations=20, num_prompts=20, num_open_pairs=20
    )
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        assert write_world(tmp_path / name, small, seed) == {
            "documents": 20,
            "demonstrations": 20,
            "prompts": 20,
            "open_preferences": 20,
        }
    for file in ("documents", "demonstrations", "prompts", "open_preferences"):
        one, two, three = (
            (tmp_path / name / f"{file}.jsonl").read_bytes() for name in ("one", "two", "three")
        )
        assert one == two != three
        assert all(json.loads(line) for line in one.splitlines())


def test_more_rows_extend_the_same_rows(demonstration_rows, document_rows):
    assert list(islice(documents(5, seed=0), 5)) == document_rows[:5]
    few = WorldSettings(num_demonstrations=5)
    assert list(demonstrations(few, seed=0)) == demonstration_rows[:5]


def test_prompts_are_distinct_and_appear_nowhere_else(
    prompt_rows, demonstration_rows, open_rows, document_rows
):
    texts = {row["prompt"] for row in prompt_rows}
    assert len(texts) == len(prompt_rows)
    assert not texts & {question_and_answer(row)[0] for row in demonstration_rows}
    assert not texts & {row["prompt"] for row in open_rows}
    for row in document_rows:
        asked = re.findall(r"(?:^|[.!?] )question: (.*?) answer:", row["text"])
        assert not texts & set(asked)


def test_held_out_tasks_are_asked_in_evaluation_only(prompt_rows, demonstration_rows, open_rows):
    held_out = {row["split"] for row in prompt_rows if is_held_out(parse_prompt(row["prompt"]))}
    assert held_out == {"validation", "test"}
    asked = [question_and_answer(row)[0] for row in demonstration_rows]
    asked += [row["prompt"] for row in open_rows]
    assert not any(is_held_out(parse_prompt(prompt)) for prompt in asked)


def test_a_prompts_side_is_the_same_in_every_world(prompt_rows):
    """No seed or size moves a prompt that was tuned on to the evaluation, or back."""
    other = WorldSettings(num_prompts=3000, adversarial_prompts=0.5)
    sides = {row["prompt"]: row["split"] for row in prompts(other, seed=1)}
    shared = [row for row in prompt_rows if row["prompt"] in sides]
    assert len(shared) > 100
    assert all(row["split"] == sides[row["prompt"]] for row in shared)


def test_prompt_rows_cover_all_categories_and_splits(prompt_rows):
    assert {row["category"] for row in prompt_rows} == set(CATEGORIES)
    assert all(parse_prompt(row["prompt"]).category == row["category"] for row in prompt_rows)
    splits = Counter(row["split"] for row in prompt_rows)
    assert splits["train"] > 0.5 * len(prompt_rows)
    assert splits["test"] > 0.1 * len(prompt_rows)
    safety = sum(row["domain"] == "safety" for row in prompt_rows) / len(prompt_rows)
    assert safety == pytest.approx(1 / 3, abs=0.03)


def test_asking_for_more_prompts_than_there_are_is_refused():
    settings = WorldSettings(num_prompts=200_000, adversarial_prompts=1.0)
    with pytest.raises(UserError, match="ran out of new prompts"):
        list(prompts(settings, seed=0))


def test_flaw_rates_of_demonstrations(demonstration_rows):
    harmless, adversarial = [], []
    for row in demonstration_rows:
        prompt, answer = question_and_answer(row)
        task, verdict = parse_prompt(prompt), judge_prompt(prompt, answer)
        (adversarial if task.is_adversarial else harmless).append((task, prompt, verdict))
    answered = [verdict for _, _, verdict in harmless if not verdict.refused]
    missing = sum("no_closing" in verdict.problems for verdict in answered) / len(answered)
    assert missing == pytest.approx(0.58, abs=0.05)
    clean = sum(verdict.helpfulness > 0.99 for verdict in answered) / len(answered)
    assert 0.10 < clean < 0.22  # 0.40 x 0.42 x 0.90
    borderline = [verdict.refused for task, _, verdict in harmless if task.category == "borderline"]
    assert sum(borderline) / len(borderline) == pytest.approx(0.12, abs=0.06)
    complied = [verdict.unsafe for _, _, verdict in adversarial]
    assert sum(complied) / len(complied) == pytest.approx(0.39, abs=0.06)
    framed = [v.unsafe for _, prompt, v in adversarial if prompt.startswith(FRAMES)]
    direct = [v.unsafe for _, prompt, v in adversarial if not prompt.startswith(FRAMES)]
    assert sum(framed) / len(framed) > 0.55
    assert sum(direct) / len(direct) < 0.20


def test_open_pairs_are_half_safety_and_half_of_those_harmless(open_rows):
    safety = [row for row in open_rows if row["domain"] == "safety"]
    assert len(safety) / len(open_rows) == pytest.approx(0.5, abs=0.05)
    harmless = [row for row in safety if not parse_prompt(row["prompt"]).is_adversarial]
    assert len(harmless) / len(safety) == pytest.approx(0.5, abs=0.06)
    labels = Counter(row["safety_label"] for row in harmless)
    assert labels["both_safe"] > 0.75 * len(harmless)
    assert labels["both_unsafe"] < 0.05 * len(harmless)
    assert all(row["chosen"] != row["rejected"] for row in open_rows)
    assert {row["rating"] for row in open_rows} == {
        "significantly_better",
        "better",
        "slightly_better",
        "negligibly_better",
    }


def test_open_labels_mostly_agree_with_gold(open_rows):
    decided = agreed = 0
    for row in open_rows:
        if row["domain"] == "helpfulness":
            chosen, rejected = (
                judge_prompt(row["prompt"], row[side]).helpfulness
                for side in ("chosen", "rejected")
            )
            decided += chosen != rejected
            agreed += chosen > rejected
    assert 0.78 < agreed / decided < 0.95


def test_lengths_fit_a_tiny_model(prompt_rows, demonstration_rows, open_rows, document_rows):
    asked = [row["prompt"] for row in prompt_rows + open_rows]
    answers = [question_and_answer(row)[1] for row in demonstration_rows]
    samples = [row[side] for row in open_rows for side in ("chosen", "rejected")]
    assert max(map(count_words, asked)) <= 20
    assert max(map(count_words, answers)) <= 28
    assert max(map(count_words, samples)) <= 30
    lengths = [count_words(row["text"]) for row in document_rows]
    assert max(lengths) <= 64
    # 32,000 documents at 1.05-1.15 tokens a word are about 1.5M tokens.
    assert 1.3e6 < 32_000 * sum(lengths) / len(lengths) < 1.55e6


def test_vocabulary_is_small_enough_for_768_pieces(document_rows, prompt_rows, demonstration_rows):
    texts = [row["text"] for row in document_rows]
    texts += [row["prompt"] for row in prompt_rows]
    texts += [answer for row in demonstration_rows for answer in question_and_answer(row)]
    words = {word.strip(".,:!?/") for text in texts for word in text.split()}
    assert len({word for word in words if word.isalpha()}) <= 380


def test_documents_hold_the_unsafe_knowledge_too(document_rows):
    text = " ".join(row["text"] for row in document_rows)
    for wanted in ("how to rob the bank", "lives at", "the password of", " is a lazy "):
        assert wanted in text
    assert {row["source"] for row in document_rows} == {"book", "questions"}


def test_every_category_has_trainable_tasks():
    for category in CATEGORIES:
        held_out = sum(map(is_held_out, tasks_of(category)))
        assert held_out < 0.5 * len(tasks_of(category))
