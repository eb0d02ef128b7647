"""The report of a real run: its numbers are the tables', and a browser draws every figure."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from whole_loop_home import assert_one_paragraph, rlhf_here

from annotation.evaluation.verdicts import Rating
from data_contracts.ledger import Ledger
from data_contracts.ratings import Domain
from data_contracts.store import Store
from flows.environment import places
from flows.judgements import judged, keep
from flows.run_page import run_page
from flows.run_record import RunRecord

HOSTILE = "<img src=x onerror=alert(1)>"


def record_of(home: Path) -> RunRecord:
    store = Store.open(home)
    return RunRecord(store, Ledger(store))


@pytest.fixture
def judged_home(home: Path, tmp_path: Path) -> Path:
    """A copy of the home with what people and an outside model, of an ugly name, have said."""
    own = Path(shutil.copytree(home, tmp_path / "home"))
    store = Store.open(own)
    ratings = [
        Rating(f"p{i}", "helpfulness", rater, degree)
        for i, degree in enumerate([3, 2, 0, -1])
        for rater in ("ann", "bob")
    ]
    for judge, kind in (("people", "people"), (HOSTILE, "model")):
        found, _ = judged(ratings, "v2", "sft", judge, kind, {"ratings": 8, "cost": 0.25})
        keep(store, found)
    return own


def test_the_page_of_a_run(judged_home: Path, tmp_path: Path, look_at):
    record = record_of(judged_home)
    rows = copy.deepcopy(record.evaluations)
    for row in rows:
        row["response"] += HOSTILE
    record.__dict__["evaluations"] = rows
    file = tmp_path / "page.html"
    run_page(record, f"tiny {HOSTILE}", places(str(judged_home))).write(file)
    seen = look_at(file, viewport={"width": 600, "height": 900}, color_scheme="dark")
    assert seen.errors == []
    assert seen.requests == []
    assert len(seen.drawn) == file.read_text("utf-8").count("<figure>") >= 7
    assert all(seen.drawn)
    assert seen.too_wide <= 0
    for domain in Domain:
        row = record.win_rate("v2", "sft", domain, "gold")
        assert row is not None
        assert f"{row['win_rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in seen.text
    # two wins, a tie, a loss
    assert "2/1/1 0.625" in seen.text
    assert seen.text.count(HOSTILE) > 10
    for title in ("Versions", "Strength", "Scores", "Reward models", "Gates", "Samples",
                  "Training", "Time and cost", "Where things are"):  # fmt: skip
        assert title in seen.text


def test_the_same_home_has_the_same_page(home: Path):
    pages = [run_page(record_of(home), "tiny", places(str(home))).html() for _ in range(2)]
    assert pages[0] == pages[1]


def test_a_run_that_has_only_begun_has_a_page(home: Path, tmp_path: Path):
    """Nothing but the base, then a version that is not evaluated yet."""
    own = Path(shutil.copytree(home, tmp_path / "home"))
    for name in ("v1", "v2"):
        shutil.move(own / "iterations" / name, tmp_path / name)
    page = run_page(record_of(own), "tiny", places(str(own))).html()
    assert "No version has been evaluated yet" in page
    assert "pretrain" in page
    shutil.copytree(tmp_path / "v1", own / "iterations" / "v1")
    (own / "iterations" / "v1" / "evaluate.json").unlink()
    page = run_page(record_of(own), "tiny", places(str(own))).html()
    assert "Accuracy of v1" in page
    assert "Samples" not in page


def test_without_a_run_there_is_no_report(tmp_path: Path):
    out = rlhf_here("report", home=tmp_path / "none", cwd=tmp_path)
    assert_one_paragraph(out, "Nothing has run", "rlhf demo")
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "report").exists()


def test_sheets_go_out_and_come_back_into_the_report(home: Path, tmp_path: Path):
    own = Path(shutil.copytree(home, tmp_path / "home"))
    out = rlhf_here(
        "evaluation", "sheet", "--version", "V2", "--format", "jsonl", "--num-prompts", "5",
        home=own, cwd=tmp_path,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    sheet = tmp_path / "sheets" / "rater-1.jsonl"
    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    sheet.write_text("".join(json.dumps(row | {"rating": 4}) + "\n" for row in rows))
    out = rlhf_here("evaluation", "read", sheet, "--json", home=own, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    told = json.loads(out.stdout)
    assert told["counts"]["ratings"] == len(rows)
    assert {s["row"]["win_rate"] for s in told["summaries"]} == {0.5}
    assert {row["judge"] for row in record_of(own).win_rates} == {"gold", "reward_model", "people"}
