"""Bradley-Terry against hand-computed maxima of the likelihood."""

import math

import numpy as np
import pytest

from annotation.evaluation.strengths import Game, expected_score, strengths


def games(first: str, second: str, wins: int, ties: int, losses: int) -> list[Game]:
    points = [1.0] * wins + [0.5] * ties + [0.0] * losses
    return [Game(f"{first}{second}{i}", first, second, p) for i, p in enumerate(points)]


def elos(played: list[Game], **options) -> dict[str, float]:
    found = strengths(played, "sft", num_resamples=2, **options)
    return {s.version: s.elo for s in found}


def test_two_versions_by_hand():
    """s_1 / s_2 = (wins + ties / 2) / (losses + ties / 2)."""
    found = elos(games("v1", "sft", 60, 20, 20), virtual_ties=0)
    assert found["sft"] == 1000
    assert found["v1"] == pytest.approx(1000 + 400 * math.log10(70 / 30), abs=1e-6)
    assert expected_score(found["v1"], found["sft"]) == pytest.approx(0.7)


def test_a_virtual_tie_is_half_a_win_for_each():
    found = elos(games("v1", "sft", 10, 0, 0))
    assert found["v1"] == pytest.approx(1000 + 400 * math.log10(10.5 / 0.5), abs=1e-6)


def test_three_versions_whose_rates_fit_one_another():
    """Strengths 1, 2, 4: wins of 2/3, 4/5 and 2/3 are met exactly, so they are the maximum."""
    played = games("v1", "sft", 20, 0, 10) + games("v2", "sft", 24, 0, 6)
    played += games("v2", "v1", 20, 0, 10)
    found = elos(played, virtual_ties=0)
    assert found["v1"] == pytest.approx(1000 + 400 * math.log10(2), abs=1e-5)
    assert found["v2"] == pytest.approx(1000 + 400 * math.log10(4), abs=1e-5)


def test_three_versions_that_do_not_fit_have_no_gradient():
    """The plain condition of a maximum: points won are points expected."""
    played = games("v1", "sft", 9, 4, 5) + games("v2", "sft", 3, 1, 8) + games("v2", "v1", 7, 0, 2)
    found = elos(played, virtual_ties=0)
    for version in found:
        won = sum(g.points if g.first == version else 1 - g.points for g in played
                  if version in (g.first, g.second))  # fmt: skip
        expected = sum(
            expected_score(found[version], found[g.second if g.first == version else g.first])
            for g in played
            if version in (g.first, g.second)
        )
        assert won == pytest.approx(expected, abs=1e-5)


def test_the_interval_is_that_of_the_win_rate():
    """Two versions, n games: Elo's standard error is 400 / ln 10 / sqrt(n p (1 − p))."""
    played = games("v1", "sft", 240, 0, 160)
    v1 = next(s for s in strengths(played, "sft", num_resamples=4000) if s.version == "v1")
    half = 1.96 * 400 / math.log(10) / math.sqrt(400 * 0.6 * 0.4)
    assert v1.high - v1.elo == pytest.approx(half, rel=0.12)
    assert v1.elo - v1.low == pytest.approx(half, rel=0.12)
    assert v1.num_games == 400


def test_the_interval_covers_the_truth():
    generator = np.random.default_rng(1)
    truth, covered = 1000 + 400 * math.log10(0.65 / 0.35), 0
    for _ in range(60):
        wins = int(generator.binomial(200, 0.65))
        v1 = strengths(games("v1", "sft", wins, 0, 200 - wins), "sft", num_resamples=300)[0]
        covered += v1.low <= truth <= v1.high
    assert covered >= 51  # 57 expected; below 51 once in 400


def test_a_prompt_is_drawn_as_a_whole():
    """Ten games on each of 40 prompts that always agree say no more than 40 games."""
    alone = games("v1", "sft", 28, 0, 12)
    repeated = [game for game in alone for _ in range(10)]
    widths = [
        s.high - s.low
        for played in (alone, repeated)
        for s in strengths(played, "sft", virtual_ties=0, num_resamples=2000)
        if s.version == "v1"
    ]
    assert widths[0] == pytest.approx(widths[1], rel=0.05)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="anchor"):
        strengths(games("v1", "v2", 1, 0, 1), "sft")
    with pytest.raises(ValueError, match="never met"):
        strengths(games("v1", "sft", 1, 0, 1) + games("v2", "v3", 1, 0, 1), "sft")
