"""Calibration, the gate's quality and length bias against hand-computed values."""

import math

import pytest
import torch

from data_contracts.ratings import SafetyLabel
from stages.models.calibration import (
    calibration_error,
    calibration_rows,
    gate_quality,
    length_bias,
)
from stages.models.pairs import Pair, PairScores


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def pair(chosen: int = 3, rejected: int = 3, label: SafetyLabel | None = None) -> Pair:
    """Sides of these lengths."""
    return Pair([0] * chosen, [0] * rejected, None, label)


def scores(chosen: list[float], rejected: list[float]) -> PairScores:
    return PairScores(torch.tensor(chosen), torch.tensor(rejected))


def test_confidence_is_compared_with_how_often_people_agreed():
    # Sure to 0.75 of three pairs, of which people chose two as it did, and to 0.95 of one.
    margins = [logit(0.75), logit(0.75), -logit(0.75), logit(0.95)]
    rows = calibration_rows("helpfulness", "meta", [pair()] * 4, scores(margins, [0.0] * 4))
    assert [(row["event"], row["num_items"]) for row in rows] == [
        ("preferred", 3),
        ("preferred", 1),
    ]
    assert [row["predicted"] for row in rows] == pytest.approx([0.75, 0.95])
    assert [row["observed"] for row in rows] == pytest.approx([2 / 3, 1.0])
    assert (rows[0]["bin_low"], rows[0]["bin_high"]) == (0.7, 0.8)
    assert rows[0]["low"] < 2 / 3 < rows[0]["high"]
    expected = (3 * (0.75 - 2 / 3) + 1 * 0.05) / 4
    assert calibration_error(rows, "preferred") == pytest.approx(expected)


def test_which_side_stands_first_changes_no_bin():
    rows = calibration_rows("helpfulness", "meta", [pair()], scores([0.0], [2.0]))
    (row,) = rows
    assert row["predicted"] == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert row["observed"] == 0.0, "people chose the side that it likes less"


def test_a_safety_models_score_is_compared_with_the_label_of_each_side():
    pairs = [pair(label=SafetyLabel.chosen_safe_other_unsafe), pair(label=None)]
    found = scores([logit(0.85), 9.0], [logit(0.05), 9.0])
    rows = calibration_rows("safety", "safety", pairs, found)
    safe = [row for row in rows if row["event"] == "safe"]
    assert [(r["predicted"], r["observed"], r["num_items"]) for r in safe] == [
        (pytest.approx(0.05), 0.0, 1),
        (pytest.approx(0.85), 1.0, 1),
    ], "the pair without a label does not count"
    assert calibration_error(safe, "safe") == pytest.approx((0.05 + 0.15) / 2)


def test_precision_and_recall_of_the_gate():
    both_unsafe, mixed = SafetyLabel.both_unsafe, SafetyLabel.chosen_safe_other_unsafe
    pairs = [pair(label=both_unsafe), pair(label=mixed), pair()]
    # Sides: unsafe 0.1 caught, unsafe 0.5 missed; safe 0.1 caught by mistake, unsafe 0.14 caught.
    found = scores([logit(0.1), logit(0.1), -9.0], [logit(0.5), logit(0.14), -9.0])
    assert gate_quality(pairs, found, 0.15) == {
        "gate/fired_on_safe": 1.0,
        "gate/precision": pytest.approx(2 / 3),
        "gate/recall": pytest.approx(2 / 3),
    }
    assert gate_quality([pair()], scores([0.0], [0.0]), 0.15) == {}
    assert "gate/precision" not in gate_quality(pairs[:1], scores([9.0], [9.0]), 0.15)


def test_length_bias_stands_beside_peoples_own():
    pairs = [pair(9, 5), pair(5, 9), pair(5, 9), pair(5, 5)]
    # The model likes the longer side in all three, people in one of them.
    found = scores([4.0, 0.0, 0.0, 7.0], [0.0, 4.0, 4.0, 0.0])
    assert length_bias(pairs, found) == {
        "length_bias/longer_scores_higher": 1.0,
        "length_bias/longer_chosen": pytest.approx(1 / 3),
        "length_bias/correlation": pytest.approx(1.0),
    }
    assert length_bias([pair()], scores([1.0], [0.0])) == {}
