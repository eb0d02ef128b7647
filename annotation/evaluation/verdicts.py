"""What judges said of pairs of responses, summed up: win rates, a 7-point scale, agreement (§3.4).

Intervals are over prompts: Wilson's on wins plus half the ties, and a bootstrap beside it, which
knows that ties are not half lost.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from annotation.agreement import Agreement, gwet
from annotation.evaluation.strengths import Game
from data_contracts.errors import UserError
from data_contracts.ratings import Domain
from stages.models.comparison import win_rate_row

MOST = 3
"""A rating runs from −3 (the opponent is much better) over 0 to 3: seven points."""
_POINTS = 2 * MOST + 1
IDENTICAL = "identical"
"""The rater of ties that nobody was asked for; no part of agreement or of the scale."""


@dataclass(frozen=True)
class Pair:
    """Two versions' responses to one held-out prompt."""

    prompt_id: str
    domain: str
    messages: list[dict[str, str]]
    version: str
    opponent: str
    response: str
    """The version's."""
    other: str
    """The opponent's."""

    @property
    def is_identical(self) -> bool:
        """Nothing to judge: a tie that nobody needs to be asked for."""
        return self.response.strip() == self.other.strip()


@dataclass(frozen=True)
class Rating:
    """What one judge said of a pair, from the version's side."""

    prompt_id: str
    domain: str
    rater: str
    degree: int
    """−3 … 3, 0 is a tie."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """One domain's ratings."""

    row: dict[str, Any]
    """Of the win_rates table, with Wilson's interval."""
    bootstrap: Interval
    """Of the win rate."""
    scale: Interval
    """Mean rating, −3 … 3."""
    counts: list[int]
    """Ratings of each of the seven points, −3 first."""
    ac1: Agreement | None
    """Of win, tie and loss; None without two raters for two prompts."""
    ac2: Agreement | None
    """Of the seven points, with ordinal weights."""

    def as_json(self) -> dict[str, Any]:
        """For a file or another program."""
        return asdict(self)


def pairs_of(
    evaluations: Sequence[dict[str, Any]],
    version: str,
    opponent: str,
    num_prompts: int | None = None,
    domain: str | None = None,
) -> list[Pair]:
    """Both versions' responses to the same prompts, rows of the evaluations table.

    `num_prompts` takes so many of each domain, in an order that depends on the prompts' ids alone:
    a longer selection holds the shorter one. Raises UserError where there is none.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {version: {}, opponent: {}}
    for row in evaluations:
        if row["version"] in found and domain in (None, row["domain"]):
            found[row["version"]][row["prompt_id"]] = row
    shared = digest_order(found[version].keys() & found[opponent].keys())
    chosen: list[Pair] = []
    for name in Domain:
        ids = [p for p in shared if found[version][p]["domain"] == name]
        for prompt_id in ids[:num_prompts]:
            own, other = found[version][prompt_id], found[opponent][prompt_id]
            chosen.append(
                Pair(
                    prompt_id,
                    own["domain"],
                    [{"role": m["role"], "content": m["content"]} for m in own["messages"]],
                    version,
                    opponent,
                    own["response"],
                    other["response"],
                )
            )
    if not chosen or version == opponent:
        have = ", ".join(dict.fromkeys(row["version"] for row in evaluations)) or "none"
        raise UserError(
            f"No held-out prompt has responses of both {version} and {opponent}",
            f"Name two of the evaluated versions: {have}",
        )
    return chosen


def digest_order(ids: Iterable[str]) -> list[str]:
    """Ids in an order that has nothing to do with what they stand for."""
    return sorted(ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def summaries(ratings: Sequence[Rating], version: str, opponent: str, judge: str) -> list[Summary]:
    """A summary for each domain that has ratings. A prompt counts once, by its raters' median."""
    return [
        _summary(own, version, opponent, domain, judge)
        for domain in Domain
        if (own := [rating for rating in ratings if rating.domain == domain])
    ]


def games(ratings: Sequence[Rating], version: str, opponent: str) -> list[Game]:
    """The ratings as games for Bradley-Terry, one for each prompt."""
    return [
        Game(prompt_id, version, opponent, (1 + float(np.sign(degree))) / 2)
        for prompt_id, degree in _medians(ratings).items()
    ]


def bootstrap(values: Sequence[float], num_resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of independent values with its 95 % percentile interval."""
    array = np.asarray(values, float)
    levels, counts = np.unique(array, return_counts=True)
    # few different values: their counts in a resample are one multinomial draw
    drawn = np.random.default_rng(seed).multinomial(
        len(array), counts / len(array), size=num_resamples
    )
    low, high = np.quantile(drawn @ levels / len(array), [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high))


def _summary(
    ratings: list[Rating], version: str, opponent: str, domain: Domain, judge: str
) -> Summary:
    medians = list(_medians(ratings).values())
    row = win_rate_row(version, opponent, domain.value, judge, medians, [0.0] * len(medians))
    by_prompt: dict[str, list[int]] = {}
    for rating in ratings:
        if rating.rater != IDENTICAL:
            by_prompt.setdefault(rating.prompt_id, []).append(rating.degree)
    outcomes = [[int(np.sign(d)) + 1 for d in degrees] for degrees in by_prompt.values()]
    points = [[d + MOST for d in degrees] for degrees in by_prompt.values()]
    counts = np.bincount([p for rated in points for p in rated], minlength=_POINTS)
    return Summary(
        row,
        bootstrap([(1 + float(np.sign(value))) / 2 for value in medians]),
        bootstrap([float(np.mean(degrees)) for degrees in by_prompt.values()] or [0.0]),
        counts.tolist(),
        gwet(outcomes, 3),
        gwet(points, _POINTS, "ordinal"),
    )


def _medians(ratings: Sequence[Rating]) -> dict[str, float]:
    degrees: dict[str, list[int]] = {}
    for rating in ratings:
        degrees.setdefault(rating.prompt_id, []).append(rating.degree)
    return {prompt_id: float(median(given)) for prompt_id, given in degrees.items()}
