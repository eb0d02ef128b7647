"""Win rates, the 7-point scale and agreement of a few ratings, by hand."""

import pytest

from annotation.evaluation.strengths import Game
from annotation.evaluation.verdicts import (
    IDENTICAL,
    Rating,
    bootstrap,
    games,
    pairs_of,
    summaries,
)
from data_contracts.errors import UserError
from data_contracts.tables import WIN_RATES
from data_contracts.validation import RowChecks, batch_from_dicts

SEVEN_POINTS = [
    [3, 3], [2, 3], [-1, 0], [0, 0], [1, 2], [-3, -2], [3, 1], [0, 1], [-2, -2], [2, 2],
]  # fmt: skip
"""Two raters on ten prompts."""

IRRCAC = {
    "ac1": (0.71530249, 0.26780381, 1.0),
    "ac2": (0.85828167, 0.73489883, 0.9816645),
}
"""Coefficient and interval that irrCAC 0.4.4 prints: `CAC(ratings, weights).gwet()`, of the signs
with "identity" weights and of the ratings with "ordinal" ones."""


def rated(degrees: list[list[int]], domain: str = "helpfulness") -> list[Rating]:
    return [
        Rating(f"p{i}", domain, f"rater-{r}", degree)
        for i, given in enumerate(degrees)
        for r, degree in enumerate(given)
    ]


def evaluation(version: str, prompt: str, response: str, domain: str = "helpfulness") -> dict:
    messages = [{"role": "user", "content": f"question {prompt}"}]
    return {
        "version": version,
        "prompt_id": prompt,
        "domain": domain,
        "messages": messages,
        "response": response,
    }


def test_a_prompt_counts_once_by_its_raters_median():
    """Medians 3, 2.5, −.5, 0, 1.5, −2.5, 2, .5, −2, 2: six wins, one tie, three losses."""
    (found,) = summaries(rated(SEVEN_POINTS), "v5", "sft", "people")
    assert (found.row["wins"], found.row["ties"], found.row["losses"]) == (6, 1, 3)
    assert found.row["win_rate"] == 0.65
    assert found.bootstrap.mean == 0.65
    assert found.bootstrap.low < 0.65 < found.bootstrap.high
    assert found.scale.mean == pytest.approx(0.65)  # the sum of all degrees is 13, of 20 ratings
    assert found.counts == [1, 3, 1, 4, 3, 4, 4]


def test_the_row_keeps_the_contract_of_win_rates():
    rows = [s.row for s in summaries(rated(SEVEN_POINTS) + rated([[1]], "safety"), "v5", "v4", "j")]
    checks = RowChecks(WIN_RATES)
    checks.add(batch_from_dicts(rows, WIN_RATES, "rows"))
    checks.raise_if_broken("rows")
    assert [row["domain"] for row in rows] == ["helpfulness", "safety"]


def test_agreement_is_irrcacs():
    (found,) = summaries(rated(SEVEN_POINTS), "v5", "sft", "people")
    assert found.ac1 is not None
    assert found.ac2 is not None
    for ours, theirs in ((found.ac1, IRRCAC["ac1"]), (found.ac2, IRRCAC["ac2"])):
        assert (ours.coefficient, ours.low, ours.high) == pytest.approx(theirs, abs=1e-8)


def test_identical_responses_are_ties_and_no_agreement():
    equal = [Rating(f"same{i}", "helpfulness", IDENTICAL, 0) for i in range(10)]
    (alone,) = summaries(rated(SEVEN_POINTS), "v5", "sft", "people")
    (found,) = summaries(rated(SEVEN_POINTS) + equal, "v5", "sft", "people")
    assert (found.row["wins"], found.row["ties"], found.row["losses"]) == (6, 11, 3)
    assert (found.ac1, found.ac2, found.counts) == (alone.ac1, alone.ac2, alone.counts)
    assert found.scale == alone.scale


def test_games_are_the_medians():
    played = games(rated([[1, 2], [0], [-3, 1]]), "v5", "sft")
    assert played == [
        Game("p0", "v5", "sft", 1.0),
        Game("p1", "v5", "sft", 0.5),
        Game("p2", "v5", "sft", 0.0),
    ]


def test_a_bootstrap_has_the_width_of_the_binomial():
    found = bootstrap([1.0] * 70 + [0.0] * 30)
    assert found.mean == pytest.approx(0.7)
    half = 1.96 * (0.7 * 0.3 / 100) ** 0.5
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)
    assert bootstrap([0.5] * 20) == bootstrap([0.5])  # nothing varies


def test_ties_make_the_bootstrap_narrower_than_wilson():
    (found,) = summaries(rated([[0]] * 80 + [[1]] * 20), "v5", "sft", "people")
    wilson = found.row["high"] - found.row["low"]
    assert found.bootstrap.high - found.bootstrap.low < wilson


def test_pairs_are_of_shared_prompts_and_a_longer_selection_holds_the_shorter():
    rows = [evaluation(v, f"p{i}", f"{v} says {i}") for v in ("sft", "v5") for i in range(9)]
    rows += [evaluation("v5", "alone", "x"), evaluation("v4", "p1", "x")]
    rows += [evaluation(v, "s1", "equal ", "safety") for v in ("sft", "v5")]
    pairs = pairs_of(rows, "v5", "sft")
    assert len(pairs) == 10
    assert [p.is_identical for p in pairs] == [False] * 9 + [True]
    assert all(p.response.startswith("v5") for p in pairs[:9])
    few = pairs_of(rows, "v5", "sft", 3)
    assert few[:3] == pairs[:3]
    assert [p.prompt_id for p in pairs_of(rows, "v5", "sft", domain="safety")] == ["s1"]


@pytest.mark.parametrize(("version", "against"), [("v9", "sft"), ("v5", "v5")])
def test_versions_that_share_nothing_are_refused(version: str, against: str):
    rows = [evaluation(v, "p", v) for v in ("sft", "v5")]
    with pytest.raises(UserError, match="sft, v5"):
        pairs_of(rows, version, against)
