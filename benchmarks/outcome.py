"""The answer to one question: rates, ratios, and the machine that they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.machine import Machine
from benchmarks.shapes import Floor
from benchmarks.turns import Round


@dataclass(frozen=True)
class SideOutcome:
    """One side's rates, and how many times as fast the first side was in the same round."""

    name: str
    settings: str
    rates: list[float]
    ratios: list[float]
    target: float | None
    facts: dict[str, float]

    @classmethod
    def of(
        cls, name: str, settings: str, target: float | None, own: list[Round], first: list[Round]
    ) -> "SideOutcome":
        """Compare the rounds of a side with the first side's, pair by pair."""
        return cls(
            name=name,
            settings=settings,
            rates=[r.rate for r in own],
            ratios=[a.rate / b.rate for a, b in zip(first, own, strict=True)],
            target=target,
            facts=_median_facts(own),
        )

    @property
    def rate(self) -> float:
        """Median rate, in the benchmark's unit."""
        return median(self.rates)

    @property
    def ratio(self) -> float:
        """Median over the rounds of the first side's rate over this side's."""
        return median(self.ratios)

    @property
    def is_reached(self) -> bool | None:
        """Whether the first side is as many times as fast as it means to be."""
        return None if self.target is None else self.ratio >= self.target


def _median_facts(rounds: Sequence[Round]) -> dict[str, float]:
    return {name: median(r.facts[name] for r in rounds) for name in rounds[0].facts}


@dataclass(frozen=True)
class Outcome:
    """What one benchmark found."""

    name: str
    question: str
    unit: str
    size: str
    remarks: str
    amount_per_round: float
    """Tokens or rows that the first side worked through in a round."""
    floor: Floor | None
    sides: list[SideOutcome]
    machine: Machine

    @property
    def first(self) -> SideOutcome:
        """The side that the others are compared with."""
        return self.sides[0]

    @property
    def share_of_peak(self) -> float | None:
        """The first side's arithmetic rate over that of a large matrix product."""
        if self.floor is None:
            return None
        return self.first.rate * self.floor.flops / self.machine.flops_per_second
