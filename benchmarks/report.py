"""Outcomes for the terminal, and all of them as RESULTS.md.

python -m benchmarks.report .bench/outcomes > benchmarks/RESULTS.md
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.outcome import Outcome, SideOutcome


def text_of(outcome: Outcome) -> str:
    """A table and what belongs to it, for the terminal."""
    heading = f"{outcome.first.name} is"
    lines = [f"{outcome.name}: {outcome.question}", ""]
    lines.append(f"{'side':<28} {outcome.unit:>12} {'min-max':>19} {heading:>16} {'target':>8}")
    for side in outcome.sides:
        spread = f"{min(side.rates):,.0f}-{max(side.rates):,.0f}"
        ratio, target = _ratio(outcome, side), f"{side.target:.2f}x" if side.target else ""
        lines.append(f"{side.name:<28} {side.rate:>12,.0f} {spread:>19} {ratio:>16} {target:>8}")
    lines += ["", *_notes(outcome), outcome.machine.name, outcome.machine.versions]
    return "\n".join(lines) + "\n"


def markdown(outcomes: Sequence[Outcome]) -> str:
    """RESULTS.md: one table of all ratios, then each benchmark's settings and floor.

    Raises ValueError when the outcomes are not of one machine and one set of versions.
    """
    places = {(o.machine.name, o.machine.versions) for o in outcomes}
    if len(places) != 1:
        raise ValueError("The outcomes are of several machines or versions: run `make bench` again")
    ((name, versions),) = places
    lines = [
        "# Benchmark results",
        "",
        "Written by `make bench`. Sides run in turn on the same work, warm-up excluded; a ratio is "
        "the median over the rounds. Padding is never counted. **Bold**: the target is missed.",
        "",
        f"{name}. {versions}.",
        "",
        "| benchmark | against | ours | theirs | ratio (range) | target |",
        "| --- | --- | --: | --: | --: | --: |",
        *(row for outcome in outcomes for row in _rows(outcome)),
    ]
    for outcome in outcomes:
        lines += ["", f"## {outcome.name}", "", outcome.question, ""]
        lines += [f"- {note}" for note in _notes(outcome)]
    return "\n".join(lines) + "\n"


def _rows(outcome: Outcome) -> Iterator[str]:
    for side in outcome.sides[1:]:
        ratio = f"{side.ratio:.2f} ({min(side.ratios):.2f}–{max(side.ratios):.2f})"
        ratio = f"**{ratio}**" if side.is_reached is False else ratio
        target = f"{side.target:.2f}" if side.target else ""
        rates = f"{outcome.first.rate:,.0f} | {side.rate:,.0f} {outcome.unit}"
        yield f"| {outcome.name} | {side.name} | {rates} | {ratio} | {target} |"


def _ratio(outcome: Outcome, side: SideOutcome) -> str:
    return "" if side is outcome.first else f"{side.ratio:.2f}x"


def _notes(outcome: Outcome) -> list[str]:
    """Settings of every side, the size of the work, the floor, remarks."""
    notes = [f"{s.name}: {s.settings}{_facts(s, outcome.first)}" for s in outcome.sides]
    notes.append(f"{outcome.amount_per_round:,.0f} counted a round; {outcome.size}")
    if outcome.floor is not None:
        peak = outcome.machine.flops_per_second / 1e9
        notes.append(
            f"Floor: {outcome.floor.flops / 1e6:.1f} MFLOP each ({outcome.floor.note}); "
            f"{outcome.first.name} runs at {outcome.share_of_peak:.0%} of the {peak:.0f} GFLOP/s "
            "of a large matrix product in torch.mm"
        )
    return notes + ([outcome.remarks] if outcome.remarks else [])


def _facts(side: SideOutcome, first: SideOutcome) -> str:
    """What a side measured beside the time, and the first side's as a share of it."""
    parts = []
    for name, value in side.facts.items():
        is_compared = side is not first and name in first.facts and value > 0
        share = f", {first.name} {first.facts[name] / value:.0%} of it" if is_compared else ""
        parts.append(f"{name} {value:,.4g}{share}")
    return f" ({'; '.join(parts)})" if parts else ""


def read(folder: Path) -> list[Outcome]:
    """What `--save` wrote, in order of name."""
    adapter = TypeAdapter(Outcome)
    return [adapter.validate_json(path.read_bytes()) for path in sorted(folder.glob("*.json"))]


if __name__ == "__main__":
    print(markdown(read(Path(sys.argv[1]))), end="")
