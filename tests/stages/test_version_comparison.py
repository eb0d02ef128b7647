"""Who wins when an answer was cut off: the reward model's score of half a sentence is no score."""

from typing import Any

import pytest

from data_contracts.ratings import Domain
from stages.evaluate import REWARD_MODEL, judge_agreement, opponents, paired
from stages.models.comparison import win_rate_row
from stages.models.evaluation_figures import GOLD, calibration_points, judged_twice

GROUPS = [0.05, 0.25, 0.45, 0.65, 0.85]


def row(version: str, prompt: str, score: float, finished: bool = True) -> dict[str, Any]:
    return {
        "version": version,
        "prompt_id": prompt,
        "domain": "helpfulness",
        "finished": finished,
        "helpfulness_score": score,
        "gold_helpfulness": score,
    }


@pytest.mark.parametrize(
    ("own", "other", "win_rate"),
    [
        ((1.0, True), (0.5, True), 1.0),
        ((1.0, False), (-9.0, True), 0.0),
        ((-9.0, True), (1.0, False), 1.0),
        ((1.0, False), (0.5, False), 1.0),
        ((0.25, False), (0.25, False), 0.5),
    ],
)
def test_a_cut_off_answer_ranks_below_every_one_that_ended(
    own: tuple[float, bool], other: tuple[float, bool], win_rate: float
):
    rows = [row("v1", "p", *own), row("sft", "p", *other)]
    scores = paired(rows, "v1", "sft", Domain.helpfulness, REWARD_MODEL)
    table_row = win_rate_row("v1", "sft", "helpfulness", REWARD_MODEL, *scores)
    assert table_row["win_rate"] == win_rate


def test_the_gold_judge_has_its_own_rule_for_cut_off_answers():
    rows = [row("v1", "p", 0.4, finished=False), row("sft", "p", 0.3)]
    assert paired(rows, "v1", "sft", Domain.helpfulness, GOLD) == ([0.4], [0.3])


def test_a_version_meets_sft_the_version_before_and_what_led_to_it():
    before = ["sft", "v4"]
    assert opponents(before, "v5-rs") == before
    assert opponents([*before, "v5-rs", "v5-student"], "v5-student") == before
    assert opponents([*before, "v5-rs", "v5-student"], "v5") == [*before, "v5-rs", "v5-student"]
    assert opponents([*before, "v5-rs", "v5"], "v6") == ["sft", "v5"]
    assert opponents(["sft"], "v1") == ["sft"]


def test_what_a_score_is_worth_by_groups_of_equal_size():
    # Scores 0 … 9, and gold that follows them but for one swap.
    scores = [float(i) for i in range(10)]
    gold = [0.0, 0.1, 0.3, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    points = calibration_points(scores, gold, num_groups=5)
    assert points == [pytest.approx(p) for p in zip([0.5, 2.5, 4.5, 6.5, 8.5], GROUPS, strict=True)]
    assert calibration_points([1.0], [0.5]) == [(1.0, 0.5)]


def test_answers_that_were_cut_off_say_nothing_of_the_judges():
    rows = [row("v1", "a", 0.1), row("v1", "b", 0.2), row("v1", "c", 9.0, finished=False)]
    rows[1]["gold_helpfulness"] = 0.05
    assert judged_twice(rows, Domain.helpfulness) == ([0.1, 0.2], [0.1, 0.05])
    assert judge_agreement(rows) == {"judge_agreement/helpfulness": pytest.approx(-1.0)}


def test_only_prompts_that_both_answered_are_compared():
    rows = [row("v1", "b", 0.1), row("v1", "a", 0.2), row("sft", "a", 0.3), row("sft", "c", 0.4)]
    assert paired(rows, "v1", "sft", Domain.helpfulness, REWARD_MODEL) == ([0.2], [0.3])
