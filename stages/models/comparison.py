"""Comparing versions: win rates and paired differences with 95 % intervals (§3.4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

Z_95 = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its 95 % interval."""

    mean: float
    low: float
    high: float


def wilson_interval(successes: float, num_trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; half successes (ties) are welcome."""
    # here, since it takes a second that `rlhf status` need not wait for
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, num_trials, method="wilson")
    return cast(float, low), cast(float, high)


def win_rate_row(
    version: str,
    opponent: str,
    domain: str,
    judge: str,
    own: Sequence[float],
    other: Sequence[float],
) -> dict[str, Any]:
    """A row of the win_rates table: prompts where `own` scores above `other`, ties half.

    The interval is Wilson's on wins plus half the ties: a little wide when there are many ties.
    """
    own_scores, other_scores = np.asarray(own), np.asarray(other)
    ties = np.isclose(own_scores, other_scores, rtol=0, atol=1e-9)
    wins = int(((own_scores > other_scores) & ~ties).sum())
    num_ties = int(ties.sum())
    num_prompts = len(own_scores)
    points = wins + num_ties / 2
    low, high = wilson_interval(points, num_prompts)
    return {
        "win_rate_id": f"{version}:{opponent}:{domain}:{judge}",
        "version": version,
        "opponent": opponent,
        "domain": domain,
        "judge": judge,
        "num_prompts": num_prompts,
        "wins": wins,
        "ties": num_ties,
        "losses": num_prompts - wins - num_ties,
        "win_rate": points / num_prompts,
        "low": low,
        "high": high,
    }


def rate_row(measure: str, version: str, group: str, verdicts: Sequence[bool]) -> dict[str, Any]:
    """A row of the rates table: how many of a version's answers in a group are so."""
    low, high = wilson_interval(sum(verdicts), len(verdicts))
    return {
        "rate_id": f"{measure}:{version}:{group}",
        "measure": measure,
        "version": version,
        "group": group,
        "num_answers": len(verdicts),
        "num_so": sum(verdicts),
        "rate": sum(verdicts) / len(verdicts),
        "low": low,
        "high": high,
    }


def paired_difference(own: Sequence[float], other: Sequence[float]) -> Difference:
    """Mean of own − other over the same prompts, normal 95 % interval."""
    gaps = np.asarray(own, float) - np.asarray(other, float)
    mean = float(gaps.mean())
    half = Z_95 * float(gaps.std(ddof=1)) / float(np.sqrt(len(gaps))) if len(gaps) > 1 else np.inf
    return Difference(mean, mean - half, mean + half)
