"""Gwet's coefficients against published figures and by hand."""

import math

import pytest

from annotation.agreement import gwet, weight_matrix

FOUR_RATERS = [
    [1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
    [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [5, 5, 5], [1, 1], [3],
]  # fmt: skip
"""Gwet's example of four raters and five categories (Handbook of Inter-Rater Reliability,
table 2.8), which the package irrCAC carries as raw_4raters; missing ratings left out."""

PUBLISHED = {
    "identity": (0.77544407, 0.46081335, 1.0, 0.81818182),
    "ordinal": (0.89893977, 0.6636467, 1.0, 0.96818182),
    "quadratic": (0.91400072, 0.68518137, 1.0, 0.97537879),
}
"""Coefficient, interval and percent agreement that irrCAC 0.4.4 prints for it."""


@pytest.mark.parametrize("weights", PUBLISHED)
def test_the_published_example(weights):
    found = gwet([[r - 1 for r in ratings] for ratings in FOUR_RATERS], 5, weights)
    figures = (found.coefficient, found.low, found.high, found.percent_agreement)
    assert figures == pytest.approx(PUBLISHED[weights], abs=1e-8)
    assert found.num_subjects == 11


def test_two_raters_by_hand():
    # 9 of 10 agree; 0.55 of all ratings are category 0
    ratings = [[0, 0]] * 5 + [[1, 1]] * 4 + [[0, 1]]
    found = gwet(ratings, 2)
    assert found.percent_agreement == pytest.approx(0.9)
    chance = 2 * 0.55 * 0.45
    assert found.coefficient == pytest.approx((0.9 - chance) / (1 - chance))


def test_full_agreement_is_one_and_raters_who_always_differ_are_below_zero():
    assert gwet([[0, 0], [1, 1], [0, 0]], 2).coefficient == pytest.approx(1)
    assert gwet([[0, 1], [1, 0], [0, 1]], 2).coefficient < 0


def test_a_near_miss_costs_less_than_a_far_one():
    base = [[i, i] for i in range(8)]
    near, far = (gwet([*base, pair], 8, "ordinal") for pair in ([3, 4], [0, 7]))
    assert near.coefficient > far.coefficient


def test_fewer_than_two_items_with_two_ratings_have_no_interval():
    assert gwet([], 2) is None
    assert gwet([[0], [1]], 2) is None
    assert gwet([[0, 0], [1]], 2) is None


def test_ordinal_weights_count_the_pairs_between():
    # distances 1, 2, 3 span 1, 3, 6 pairs of the 6 that the whole scale spans
    assert weight_matrix(4, "ordinal")[0].tolist() == pytest.approx([1, 5 / 6, 1 / 2, 0])
    assert math.isclose(weight_matrix(4, "quadratic")[0, 1], 1 - 1 / 9)
