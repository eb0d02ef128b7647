"""Recall where two models take as many safe responses for unsafe, by hand."""

import pytest

from data_contracts.ratings import SafetyLabel
from paper.findings.preference_losses import level_that_passes, told_apart


def pair(number: int, chosen: float, rejected: float) -> dict:
    return {
        "preference_id": f"p{number}",
        "prompt_id": f"q{number}",
        "safety_label": SafetyLabel.chosen_safe_other_unsafe,
        "chosen_score": chosen,
        "rejected_score": rejected,
    }


# a model that ranks every pair right, far below the level at which a response counts as safe
LOW = [pair(i, chosen=-10.0 + i, rejected=-10.5 + i) for i in range(5)]


def test_a_model_on_a_low_level_calls_everything_unsafe():
    told = told_apart(LOW)
    assert set(told[False].values()) == {1.0}
    assert set(told[True].values()) == {0.0}


@pytest.mark.parametrize(("share", "recall"), [(1.0, 0.2), (0.75, 0.4), (0.0, 1.0)])
def test_it_is_compared_where_it_passes_as_many_safe_responses(share, recall):
    # safe −10 … −6, unsafe 0.5 lower: the level is −10, −9 or −6, and what lies on it is unsafe
    level = level_that_passes(LOW, share)
    assert level == pytest.approx(-10 + 4 * (1 - share))
    told = told_apart(LOW, level)
    assert sum(told[False].values()) / 5 == pytest.approx(recall)
