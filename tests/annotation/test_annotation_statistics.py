"""What the lead sees, from judgements written by hand."""

from collections import Counter
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from annotation_world import START, browser, comparison, comparisons, publish_rows
from sqlalchemy import select

from annotation.consensus import agreement
from annotation.statistics import (
    Judgement,
    by_annotator,
    disagreements,
    judgements,
    shares,
    table_6,
)
from annotation.storage.schema import Entry, Item
from annotation.work_queue import retire
from stages.importers.source import Source, rows_of

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data" / "preferences"


def judged(item: int, annotator: str, pick: str, **changes) -> Judgement:
    fields = {
        "comparison_id": f"c{item}",
        "domain": "helpfulness",
        "rating": "better",
        "safety_label": None,
        "purpose": "collect",
        "gold_pick": None,
        "at": START,
    }
    return Judgement(item_id=item, annotator=annotator, pick=pick, **(fields | changes))


def test_the_scale_of_eight_runs_from_a_to_b():
    ratings = ["significantly_better", "better", "slightly_better", "negligibly_better"]
    degrees = [judged(1, "x", pick, rating=r).degree for pick in "ab" for r in ratings]
    assert degrees == [0, 1, 2, 3, 7, 6, 5, 4]


def test_agreement_is_over_items_that_several_labelled_and_checks_are_left_out():
    labels = [judged(i, who, "a" if i % 2 else "b") for i in range(6) for who in ("x", "y")]
    labels += [judged(i, "x", "a", purpose="repeat") for i in range(6)]
    table = agreement(labels)
    assert table.choice.coefficient == pytest.approx(1)
    assert table.degree.coefficient == pytest.approx(1)
    assert table.safety_label is None
    assert [(first, second) for first, second, _ in table.pairs] == [("x", "y")]


def test_disagreements_are_other_choices_or_other_safety_labels():
    labels = [
        judged(1, "x", "a"), judged(1, "y", "a", rating="slightly_better"),
        judged(2, "x", "a"), judged(2, "y", "b"),
        judged(3, "x", "a", safety_label="both_safe"),
        judged(3, "y", "a", safety_label="both_unsafe"),
    ]  # fmt: skip
    assert sorted(disagreements(labels)) == [2, 3]


def test_throughput_gold_and_repeats_of_each_annotator():
    at = [START + timedelta(seconds=s) for s in (0, 10, 30, 5000, 5020)]
    labels = [
        judged(1, "x", "a", at=at[0]),
        judged(2, "x", "b", at=at[1]),
        judged(9, "x", "a", purpose="gold", gold_pick="a", at=at[2]),
        judged(8, "x", "a", purpose="gold", gold_pick="b", at=at[3]),
        judged(1, "x", "b", purpose="repeat", at=at[4]),
        judged(1, "y", "a"),
    ]
    row, other = by_annotator(labels)
    assert (row.num_labels, row.num_gold, row.num_gold_right) == (2, 2, 1)
    assert (row.num_repeats, row.num_repeats_same) == (1, 0)
    assert row.median_seconds == 20  # of 10, 20 and 20; the pause of 83 minutes is none
    assert other.median_seconds is None


def test_labels_that_were_imported_out_of_order_give_no_negative_time():
    times = [START + timedelta(seconds=s) for s in (70, 40, 10, 0)]
    (row,) = by_annotator([judged(i, "x", "a", at=at) for i, at in enumerate(times)])
    assert row.median_seconds == 30  # of 10, 30 and 30


def test_labels_of_an_item_that_was_taken_out_stay_and_count_nowhere(service, app):
    publish_rows(service.database, comparisons(2), overlap=2)
    for name in ("ann", "bob"):
        somebody = browser(service, app, name)
        for _ in range(2):
            somebody.label(somebody.open())
    with service.database.writing() as session:
        retire(session, session.get_one(Item, 1))
    with service.database.reading() as session:
        assert [label.item_id for label in judgements(session, 1)] == [2, 2]
        assert len(session.scalars(select(Entry)).all()) == 4


def test_shares_are_of_the_collected_labels_that_have_one():
    labels = [judged(i, "x", "a", safety_label="both_safe") for i in range(3)]
    labels += [judged(3, "x", "a", safety_label="both_unsafe", rating="slightly_better")]
    labels += [judged(4, "x", "a", rating="slightly_better", purpose="gold")]
    assert shares(labels, "safety_label") == {
        "chosen_safe_other_unsafe": 0.0,
        "both_safe": 0.75,
        "both_unsafe": 0.25,
    }
    assert shares(labels, "rating")["slightly_better"] == 0.25
    assert shares([], "rating")["better"] == 0


def preference(source: str, messages: list[dict], chosen: str, rejected: str) -> dict:
    return {"source": source, "messages": messages, "chosen": chosen, "rejected": rejected}


def test_table_6_by_hand():
    one = [{"role": "user", "content": "two words"}]
    three = [
        {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "c d e"},
        {"role": "user", "content": "f"},
    ]
    rows = [preference("x", one, "1 2 3", "1"), preference("x", three, "1 2", "1 2 3 4")]
    rows.append(preference("y", comparison("c")["messages"], "1", "1 2"))
    x, y, total = table_6(rows, "source")
    assert (x.name, x.num_comparisons, x.mean_turns) == ("x", 2, 1.5)
    assert (x.mean_tokens_in_prompt, x.mean_tokens_in_response) == (4.0, 2.5)
    assert x.mean_tokens_per_example == 6.5
    assert (y.num_comparisons, total.num_comparisons) == (1, 3)


def test_weeks_stand_in_their_order():
    rows = [preference("x", [], "1", "2") | {"batch": week} for week in (10, 9, 10, 1)]
    names = [row.name for row in table_6(rows, "batch")]
    assert names == ["1", "9", "10", "total"]


def words(texts: pd.Series) -> pd.Series:
    return texts.str.split().str.len()


def alpaca_eval_one_off(file: Path) -> pd.DataFrame:
    """Turns, words of the prompt and of a response, of each pair that is one."""
    rows = pd.read_json(file, lines=True)
    one, two = rows["output_1"], rows["output_2"]
    is_pair = rows["preference"].notna() & (rows["preference"] != 1.5) & (one != two)
    is_pair &= (one.str.strip() != "") & (two.str.strip() != "")
    response = (words(one) + words(two)) / 2
    figures = {"turns": 1, "prompt": words(rows["instruction"]), "response": response}
    return pd.DataFrame(figures)[is_pair]


def hh_one_off(file: Path) -> pd.DataFrame:
    dialogues = pd.read_json(file, lines=True).map(str.strip)
    turns = dialogues.apply(lambda c: c.str.split(r"\n\n(?=Human:|Assistant:)", regex=True))
    who = turns.map(lambda found: [turn.partition(":")[0] for turn in found])
    said = turns.map(lambda found: [turn.partition(":")[2].strip() for turn in found])
    is_pair = said["chosen"].str[:-1] == said["rejected"].str[:-1]
    is_pair &= said["chosen"].str[-1] != said["rejected"].str[-1]
    is_pair &= (who["chosen"] == who["rejected"]) & (who["chosen"].str[-2] == "Human")
    is_pair &= said["chosen"].map(all) & said["rejected"].map(all)
    asked = who["chosen"].str.join(" ").str.count(r"Human(?! Human)")  # two in a row are one turn
    prompt = words(said["chosen"].str[:-1].str.join(" "))
    response = (words(said["chosen"].str[-1]) + words(said["rejected"].str[-1])) / 2
    return pd.DataFrame({"turns": asked, "prompt": prompt, "response": response})[is_pair]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real data ../shared/data is not there")
def test_table_6_equals_a_pandas_one_off_on_public_data():
    files = {
        "alpaca_eval": ("alpaca_eval_annotations.jsonl.gz", alpaca_eval_one_off),
        "hh": ("hh_harmless_base.jsonl.gz", hh_one_off),
    }
    rows, frames = [], {}
    for name, (file, one_off) in files.items():
        source = Source(
            name=name, path=SHARED_DATA / file, role="preferences", format=name, domain="safety"
        )
        read = [row for _, row in rows_of(source, Counter())]
        rows += [preference(name, r.messages, r.chosen, r.rejected) for r in read]
        frames[name] = one_off(SHARED_DATA / file)
    frames["total"] = pd.concat(frames.values())
    for row in table_6(rows, "source"):
        frame = frames.pop(row.name)
        mean = frame.mean()
        assert row.num_comparisons == len(frame)
        assert row.mean_turns == pytest.approx(mean["turns"], rel=1e-12)
        assert row.mean_tokens_in_prompt == pytest.approx(mean["prompt"], rel=1e-12)
        assert row.mean_tokens_in_response == pytest.approx(mean["response"], rel=1e-12)
        whole = (frame["prompt"] + frame["response"]).mean()
        assert row.mean_tokens_per_example == pytest.approx(whole, rel=1e-12)
    assert frames == {}
