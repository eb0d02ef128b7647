"""Win rates and differences against hand-computed values."""

import pytest

from stages.models.comparison import paired_difference, win_rate_row


def test_wins_ties_and_losses_are_counted_per_prompt():
    row = win_rate_row("v1", "sft", "helpfulness", "gold", [1, 2, 3, 4], [0, 2, 4, 3])
    assert (row["wins"], row["ties"], row["losses"]) == (2, 1, 1)
    assert row["win_rate"] == pytest.approx(2.5 / 4)


def test_the_interval_is_wilsons():
    row = win_rate_row("v1", "sft", "safety", "gold", [1.0] * 80 + [0.0] * 20, [0.5] * 100)
    # Wilson 95 % for 80 of 100
    assert row["low"] == pytest.approx(0.7112, abs=1e-4)
    assert row["high"] == pytest.approx(0.8666, abs=1e-4)


def test_paired_difference_by_hand():
    gain = paired_difference([1.0, 2.0, 4.0], [0.0, 2.0, 2.0])
    # gaps 1, 0, 2: mean 1, standard deviation 1, standard error 1/sqrt(3)
    assert gain.mean == pytest.approx(1.0)
    assert gain.low == pytest.approx(1.0 - 1.959964 / 3**0.5)
    assert gain.high == pytest.approx(1.0 + 1.959964 / 3**0.5)
