import math

import numpy as np
import pytest

from paper.finding import (
    Effect,
    Estimate,
    Finding,
    Interval,
    Verdict,
    clustered,
    conclude,
    mean,
    paired,
    pooled,
    win_rate,
)

Z = 1.959964


def test_seeds_that_agree_are_weighted_by_their_precision():
    # weights 100 and 25; the spread is so much smaller than the errors explain that Hartung's and
    # Knapp's interval would be narrower than the errors' own
    interval = pooled([Estimate(1.0, 0.1), Estimate(1.001, 0.2)])
    assert interval.value == pytest.approx((100 * 1.0 + 25 * 1.001) / 125)
    assert interval.high - interval.value == pytest.approx(Z / math.sqrt(125))


def test_seeds_that_differ_widen_the_interval():
    # by hand: weights 100 each, Q = 2 × 100 × 0.5² = 50, tau² = (50 − 1) / (200 − 20000 / 200)
    interval = pooled([Estimate(0.0, 0.1), Estimate(1.0, 0.1)])
    tau2 = 49 / 100
    assert interval.value == pytest.approx(0.5)
    # weights 2 each with tau², spread 2 × 2 × 0.5² = 1, Student's t with one degree of freedom
    assert 1 / (0.01 + tau2) == pytest.approx(2)
    assert interval.high - 0.5 == pytest.approx(12.7062 * math.sqrt(1 / 4), rel=1e-4)


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_95_of_100_intervals_hold_the_truth(num_seeds, spread):
    """Seeds that differ by so many of their own standard errors."""
    rng = np.random.default_rng(0)
    intervals = [
        pooled([Estimate(v, 1.0) for v in rng.normal(0, math.hypot(1, spread), num_seeds)])
        for _ in range(2000)
    ]
    covered = np.mean([i.low <= 0 <= i.high for i in intervals])
    assert 0.94 <= covered <= 1


def test_one_seed_keeps_its_own_interval():
    assert pooled([Estimate(2.0, 0.5)]).low == pytest.approx(2 - Z * 0.5)


def test_exact_numbers_have_no_width():
    assert pooled([Estimate(3.0), Estimate(3.0)]) == Interval(3.0, 3.0, 3.0)


def test_rows_of_one_prompt_count_as_one():
    once = {("p", "a"): 1.0, ("q", "a"): 0.0, ("r", "a"): 0.0, ("s", "a"): 1.0}
    assert clustered(once) == mean(list(once.values()))
    copied = {(prompt, row): value for (prompt, _), value in once.items() for row in "abcd"}
    assert clustered(copied).value == 0.5
    assert clustered(copied).error == pytest.approx(mean(list(once.values())).error)
    # p is off by (1 − 0.4) + (0 − 0.4), q by (0 − 0.4) · 2, r by 1 − 0.4, over five rows
    uneven = {("p", "a"): 1.0, ("p", "b"): 0.0, ("q", "a"): 0.0, ("q", "b"): 0.0, ("r", "a"): 1.0}
    assert clustered(uneven).value == pytest.approx(0.4)
    assert clustered(uneven).error == pytest.approx((1.5 * (0.2**2 + 0.8**2 + 0.6**2)) ** 0.5 / 5)
    assert clustered({("p", "a"): 1.0, ("p", "b"): 0.0}).error == float("inf")
    assert clustered({}).error == float("inf")


def test_paired_means_and_win_rates_by_hand():
    own, other = {"a": 1.0, "b": 0.5, "c": 0.0}, {"a": 0.0, "b": 0.5, "d": 9.0}
    assert paired(own, other) == Estimate(0.5, pytest.approx(math.sqrt(0.5) / math.sqrt(2)))
    assert win_rate(own, other).value == 0.75
    assert mean([1.0]).error == math.inf


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, Verdict.reproduced),
        (-0.1, 0.2, Verdict.unclear),
        (-0.2, -0.1, Verdict.not_reproduced),
        (0.0, 0.0, Verdict.unclear),
    ],
)
def test_an_effect_is_judged_by_its_whole_interval(low, high, verdict):
    assert Effect("x", "x").verdict(Interval(0.0, low, high)) is verdict


def test_an_effect_too_small_to_matter_is_not_reproduced():
    effect = Effect("x", "x", matters=0.05)
    assert effect.verdict(Interval(0.0, -0.01, 0.02)) is Verdict.not_reproduced
    assert effect.verdict(Interval(0.03, -0.01, 0.07)) is Verdict.unclear
    assert effect.verdict(Interval(0.02, 0.01, 0.03)) is Verdict.reproduced


def a_finding() -> Finding:
    return Finding("z", "", "", "", lambda lab: {}, (Effect("one", ""), Effect("two", "")))


@pytest.mark.parametrize(
    ("two", "failures", "verdict"),
    [
        (0.5, {}, Verdict.reproduced),
        (0.0, {}, Verdict.unclear),
        (-0.5, {}, Verdict.not_reproduced),
        (0.5, {2: "no memory"}, Verdict.unclear),
    ],
    ids=["all hold", "one open", "one against", "a seed failed"],
)
def test_the_worst_effect_and_failed_seeds_decide(two, failures, verdict):
    measured = {1: {"one": Estimate(0.5, 0.1), "two": Estimate(two, 0.1)}}
    assert conclude(a_finding(), measured, failures).verdict is verdict


def test_a_finding_without_its_numbers_is_open():
    assert conclude(a_finding(), {}, {1: "broken"}).verdict is Verdict.unclear
    assert conclude(a_finding(), {1: {"one": Estimate(1, 0.1)}}, {}).verdict is Verdict.unclear


def test_what_was_hardly_measured_says_nothing():
    nothing, one_pair = mean([]), mean([1.0])
    assert not pooled([nothing, one_pair]).is_known
    assert str(pooled([one_pair])) == "1.000, too few to say"
    assert pooled([nothing, Estimate(2.0, 0.5)]) == pooled([Estimate(2.0, 0.5)])
    assert Effect("x", "x").verdict(pooled([one_pair])) is Verdict.unclear
