"""What a finding is, and how a verdict is reached.

For each seed a finding measures named estimates, each with a standard error over prompts or pairs.
Over the seeds they are pooled with a random-effects model, so that the 95 % interval covers both
the prompts and the seeds. A finding says beforehand which of them must lie above which bound:

    reproduced       every interval lies above its bound
    not reproduced   an interval lies below its bound, or, where `matters` says from which size on
                     an effect would matter, wholly below that
    unclear          anything else
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from scipy.stats import t as student_t

from paper.lab import Lab
from stages.models.comparison import Z_95


class Verdict(StrEnum):
    """One word for each finding."""

    reproduced = "reproduced"
    not_reproduced = "not reproduced"
    unclear = "unclear"


@dataclass(frozen=True)
class Estimate:
    """A number measured on one seed, and the standard error it has from its sample."""

    value: float
    error: float = 0.0

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of two independent estimates."""
        return Estimate(self.value - other.value, math.hypot(self.error, other.error))


Estimates = dict[str, Estimate]


@dataclass(frozen=True)
class Interval:
    """A number over all seeds with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """False where too little was measured for an interval."""
        return math.isfinite(self.high - self.low)

    def __str__(self) -> str:
        if not self.is_known:
            return f"{_short(self.value)}, too few to say"
        return f"{_short(self.value)} [{_short(self.low)}, {_short(self.high)}]"


@dataclass(frozen=True)
class Effect:
    """An estimate that the paper's claim is about."""

    name: str
    """Of the estimate."""
    says: str
    """What it is, for the reader."""
    above: float = 0.0
    matters: float | None = None
    """The smallest value that would matter; an interval below it counts against the claim."""

    def verdict(self, interval: Interval) -> Verdict:
        """What the interval says of this effect alone."""
        if interval.low > self.above:
            return Verdict.reproduced
        bound = self.above if self.matters is None else max(self.above, self.matters)
        return Verdict.not_reproduced if interval.high < bound else Verdict.unclear


@dataclass(frozen=True)
class Chart:
    """A figure of a finding: estimates named "series/x"."""

    kind: Literal["lines", "bars"]
    series: dict[str, str]
    """Label → the prefix of its estimates' names."""
    x: str
    y: str
    log_x: bool = False
    reference: float | None = None
    """Value of a thin line across."""


@dataclass(frozen=True)
class Finding:
    """One claim of the paper, how it is measured here and when it counts as reproduced."""

    letter: str
    paper: str
    """The paper's figure, table or section."""
    claim: str
    how: str
    """What was done, in a sentence or two."""
    measure: Callable[[Lab], Estimates]
    effects: tuple[Effect, ...]
    charts: tuple[Chart, ...] = ()
    notes: str = ""
    """What the reader should know: where the sandbox differs, what was tried."""
    every_seed: bool = True
    """False where the numbers are the same for every seed."""
    takes_long: bool = False
    """Whether it is measured on fewer seeds, so that all of them fit into an hour."""
    weight: float = 1.0
    """About how much of a run it takes beside what earlier findings made; for the time left."""


@dataclass(frozen=True)
class Result:
    """A finding measured."""

    finding: Finding
    intervals: dict[str, Interval]
    seeds: tuple[int, ...]
    failures: dict[int, str] = field(default_factory=dict)
    """Seed → what went wrong."""
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """Over all effects: the worst counts, and a seed that failed leaves it open."""
        found = [e.verdict(self.intervals[e.name]) for e in self.effects]
        if Verdict.not_reproduced in found:
            return Verdict.not_reproduced
        is_whole = len(found) == len(self.finding.effects) and not self.failures
        open_ = Verdict.unclear in found or not is_whole
        return Verdict.unclear if open_ else Verdict.reproduced

    @property
    def effects(self) -> list[Effect]:
        """Those that were measured."""
        return [e for e in self.finding.effects if e.name in self.intervals]


def pooled(estimates: Sequence[Estimate]) -> Interval:
    """Random-effects mean (DerSimonian and Laird 1986) with a 95 % interval.

    Over several seeds that is the interval of Hartung and Knapp (2001): a few seeds say little
    about how much seeds differ, and a normal interval, which takes that as known, covers but 85 to
    90 %. Where they agree by chance it is not narrower than the normal one. One estimate keeps its
    own interval; of exact ones (error 0) the spread over seeds counts, and one of a single value
    (error inf) says nothing.
    """
    known = [e for e in estimates if math.isfinite(e.error)]
    if not known:
        return Interval(float(np.mean([e.value for e in estimates])), -math.inf, math.inf)
    values = np.array([e.value for e in known])
    variances = np.array([e.error**2 for e in known])
    if len(values) > 1:
        variances = variances + _between(values, variances)
    if (variances == 0).any():
        return Interval(*[float(values.mean())] * 3)
    weights = 1 / variances
    mean = float((weights * values).sum() / weights.sum())
    half = Z_95 / math.sqrt(weights.sum())
    if len(values) > 1:
        freedom = len(values) - 1
        spread = float((weights * (values - mean) ** 2).sum()) / freedom
        half = max(half, float(student_t.ppf(0.975, freedom)) * math.sqrt(spread / weights.sum()))
    return Interval(mean, mean - half, mean + half)


def _between(values: np.ndarray, variances: np.ndarray) -> float:
    """Variance between seeds beyond what their own errors explain."""
    if (variances == 0).any():
        return float(values.var(ddof=1))
    weights = 1 / variances
    mean = (weights * values).sum() / weights.sum()
    excess = (weights * (values - mean) ** 2).sum() - (len(values) - 1)
    scale = weights.sum() - (weights**2).sum() / weights.sum()
    return max(0.0, float(excess / scale))


def conclude(
    finding: Finding,
    by_seed: Mapping[int, Estimates],
    failures: Mapping[int, str],
    seconds: float = 0.0,
) -> Result:
    """Pool what the seeds measured; only names that every seed has."""
    names = [n for n in next(iter(by_seed.values()), {}) if all(n in m for m in by_seed.values())]
    return Result(
        finding,
        {name: pooled([m[name] for m in by_seed.values()]) for name in names},
        tuple(by_seed),
        dict(failures),
        seconds,
    )


# ---- estimates from samples


def mean(values: Sequence[float] | np.ndarray) -> Estimate:
    """Mean of independent values; unknown when there are none."""
    array = np.asarray(values, float)
    return Estimate(float(array.mean()) if len(array) else math.nan, _error(array))


def clustered(values: Mapping[tuple[str, str], float]) -> Estimate:
    """Mean of values of (prompt, row), whose error takes rows of one prompt for dependent."""
    if not values:
        return mean([])
    prompts = sorted({prompt for prompt, _ in values})
    place = {prompt: i for i, prompt in enumerate(prompts)}
    average = float(np.mean(list(values.values())))
    off = np.zeros(len(prompts))
    for (prompt, _), value in values.items():
        off[place[prompt]] += value - average
    if len(prompts) == 1:
        return Estimate(average, math.inf)
    scale = len(prompts) / (len(prompts) - 1)
    return Estimate(average, math.sqrt(scale * float((off**2).sum())) / len(values))


def paired(own: Mapping[str, float], other: Mapping[str, float]) -> Estimate:
    """Mean of own − other over the keys that both have: prompts or pairs."""
    shared = sorted(own.keys() & other.keys())
    return mean([own[k] - other[k] for k in shared])


def win_rate(own: Mapping[str, float], other: Mapping[str, float]) -> Estimate:
    """Share of shared keys where own is above other, ties half."""
    shared = sorted(own.keys() & other.keys())
    return mean([0.5 + 0.5 * float(np.sign(round(own[k] - other[k], 9))) for k in shared])


def _error(array: np.ndarray) -> float:
    return float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.inf


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
