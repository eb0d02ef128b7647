"""A comparison: what is asked, of whom, and how the answer is worked out and printed."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import Machine, describe
from benchmarks.shapes import Floor
from benchmarks.sides import Side, in_turn
from benchmarks.turns import Round

DEFAULT_PEERS = Path(".peers")
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Benchmark:
    """One question. The first side is ours; the others are compared with it."""

    name: str
    question: str
    unit: str
    """What is counted per second. Padding never counts."""
    size: Any
    """The work, handed to every side."""
    sides: tuple[Side, ...]
    laps_per_round: int = 1
    floor: Callable[[Any], Floor] | None = None
    """Arithmetic that each unit costs at least."""
    remarks: str = ""
    """What a reader must know to judge the ratio; ends up in RESULTS.md."""


@dataclass(frozen=True)
class SideOutcome:
    """One side's rates, and how many times as fast ours was in the same round."""

    name: str
    settings: str
    rates: list[float]
    ratios: list[float]
    target: float | None
    facts: dict[str, float]

    @property
    def rate(self) -> float:
        """Median rate, in the benchmark's unit."""
        return median(self.rates)

    @property
    def ratio(self) -> float:
        """Median of ours over this side, round by round."""
        return median(self.ratios)


@dataclass(frozen=True)
class Outcome:
    """The answer to one question."""

    name: str
    question: str
    unit: str
    size: str
    remarks: str
    amount_per_round: float
    sides: list[SideOutcome] = field(default_factory=list)
    floor: Floor | None = None

    @property
    def ours(self) -> SideOutcome:
        """Our side."""
        return self.sides[0]

    def share_of_peak(self, machine: Machine) -> float | None:
        """Arithmetic rate of our side over that of a large matrix product here."""
        if self.floor is None:
            return None
        return self.ours.rate * self.floor.flops / machine.flops_per_second


def measure(benchmark: Benchmark, num_rounds: int, num_threads: int, peers: Path) -> Outcome:
    """Run all sides in turn. Raises SideFailedError."""
    rounds = in_turn(
        benchmark.sides,
        benchmark.size,
        num_rounds=num_rounds,
        laps_per_round=benchmark.laps_per_round,
        num_threads=num_threads,
        peers=peers,
    )
    rates = [[r.amount / r.seconds for r in of_side] for of_side in rounds]
    return Outcome(
        name=benchmark.name,
        question=benchmark.question,
        unit=benchmark.unit,
        size=str(benchmark.size),
        remarks=benchmark.remarks,
        amount_per_round=rounds[0][0].amount,
        sides=[
            SideOutcome(
                name=side.name,
                settings=side.settings,
                rates=own,
                ratios=[a / b for a, b in zip(rates[0], own, strict=True)],
                target=side.target,
                facts=_median_facts(of_side),
            )
            for side, own, of_side in zip(benchmark.sides, rates, rounds, strict=True)
        ],
        floor=benchmark.floor(benchmark.size) if benchmark.floor else None,
    )


def _median_facts(rounds: Sequence[Round]) -> dict[str, float]:
    return {name: median(r.facts[name] for r in rounds) for name in rounds[0].facts}


def text_of(outcome: Outcome, machine: Machine) -> str:
    """For the terminal."""
    lines = [f"{outcome.name}: {outcome.question}", ""]
    lines.append(f"{'side':<28} {outcome.unit:>12} {'min-max':>19} {'ours is':>9} {'target':>8}")
    for side in outcome.sides:
        spread = f"{min(side.rates):,.0f}-{max(side.rates):,.0f}"
        is_ours = side is outcome.ours
        ratio = "" if is_ours else f"{side.ratio:.2f}x"
        target = f"{side.target:.2f}x" if side.target else ""
        lines.append(f"{side.name:<28} {side.rate:>12,.0f} {spread:>19} {ratio:>14} {target:>8}")
    lines.append("")
    for side in outcome.sides:
        facts = ", ".join(f"{name} {value:,.4g}" for name, value in side.facts.items())
        lines.append(f"{side.name}: {side.settings}{'; ' + facts if facts else ''}")
    lines.append(f"{outcome.amount_per_round:,.0f} counted a round; {outcome.size}")
    share = outcome.share_of_peak(machine)
    if share is not None and outcome.floor is not None:
        lines.append(
            f"{outcome.floor.flops / 1e6:.1f} MFLOP each ({outcome.floor.note}): ours runs at "
            f"{share:.0%} of this machine's {machine.flops_per_second / 1e9:.0f} GFLOP/s"
        )
    lines += [machine.name, machine.versions, outcome.remarks]
    return "\n".join(lines).rstrip() + "\n"


def main(*benchmarks: Benchmark) -> None:
    """The command line of one file: run it, print it; 2 when a peer is not installed."""
    arguments = options(sys.modules["__main__"].__doc__).parse_args()
    problems = {
        side.peer.problem(arguments.peers): None
        for benchmark in benchmarks
        for side in benchmark.sides
        if side.peer and side.peer.problem(arguments.peers)
    }
    if problems:
        print("\n".join(problems), file=sys.stderr)
        sys.exit(2)
    machine = describe(arguments.threads)
    for benchmark in benchmarks:
        outcome = measure(benchmark, arguments.rounds, arguments.threads, arguments.peers)
        print(json.dumps(asdict(outcome)) if arguments.json else text_of(outcome, machine))


def options(description: str | None) -> argparse.ArgumentParser:
    """What every benchmark can be told."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=_rounds, default=MIN_ROUNDS, help="measured rounds of each side (3)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (2)")
    parser.add_argument(
        "--peers", type=Path, default=DEFAULT_PEERS, help="folder of the peers (.peers)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _rounds(text: str) -> int:
    value = int(text)
    if value < MIN_ROUNDS:
        raise argparse.ArgumentTypeError(f"at least {MIN_ROUNDS}: fewer say nothing")
    return value
