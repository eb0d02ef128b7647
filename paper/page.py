"""report/index.html: every finding with its figure, our numbers and one line of verdict."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from flows.pages.figures import draw
from flows.pages.page import Block, Cell, Facts, Figure, Mark, Page, Section, Table, Text
from paper.finding import Chart, Interval, Result, Verdict
from paper.scale import Scale

_MARKS: dict[Verdict, Literal["good", "bad", "unclear"]] = {
    Verdict.reproduced: "good",
    Verdict.not_reproduced: "bad",
    Verdict.unclear: "unclear",
}
_LEAD = (
    "Findings of the Llama 2 paper (arXiv 2307.09288), measured in the embedded sandbox: a small "
    "world whose gold judge no training stage sees.\n\n"
    "Every number is a mean over seeds with a 95 % interval that covers both the held-out prompts "
    "or pairs and the seeds (random-effects model). A finding is reproduced where every named "
    "effect's interval lies above its bound, not reproduced where one lies below, and unclear "
    "otherwise. With one seed the interval covers the prompts alone. docs/paper.md says how each "
    "test came to be, and what was tried before."
)


def report_page(results: Sequence[Result], scale: Scale, minutes: float) -> Page:
    """The whole page."""
    return Page(
        "The Llama 2 paper in miniature",
        _LEAD,
        [overview(results, scale, minutes), *(finding_section(r) for r in results)],
    )


def overview(results: Sequence[Result], scale: Scale, minutes: float) -> Section:
    """How many findings were reproduced, and the list of all."""
    counts = Counter(r.verdict for r in results)
    facts: dict[str, Cell] = {v.value: str(counts[v]) for v in Verdict}
    facts["seeds"] = ", ".join(map(str, scale.seeds))
    if long := [r.finding.letter for r in results if r.finding.takes_long]:
        first = scale.seeds[: scale.num_seeds_of_long]
        facts["those of " + ", ".join(long)] = ", ".join(map(str, first))
    facts["this run"] = f"{minutes:.0f} minutes"
    rows = [
        (f"({r.finding.letter})", r.finding.paper, r.finding.claim, verdict_mark(r))
        for r in results
    ]
    headers = ("finding", "paper", "claim", "here")
    return Section("All findings", [Facts(facts), Table(headers, rows, text_columns=(1, 2, 3))])


def verdict_mark(result: Result) -> Mark:
    """The verdict as a coloured word."""
    return Mark(result.verdict.value, _MARKS[result.verdict])


def finding_section(result: Result) -> Section:
    """One finding: claim, method, figures, effects, numbers."""
    finding = result.finding
    blocks: list[Block] = [
        Facts({"Paper": finding.paper, "Here": verdict_mark(result)}),
        Text(f"{finding.claim}\n\n{finding.how}"),
        effects_table(result),
    ]
    blocks += [figure for chart in finding.charts if (figure := chart_figure(chart, result))]
    if finding.notes:
        blocks.append(Text(finding.notes))
    for seed, reason in result.failures.items():
        blocks.append(Text(f"Seed {seed} failed: {reason}"))
    blocks.append(numbers_table(result))
    return Section(f"({finding.letter}) {finding.paper}", blocks)


def effects_table(result: Result) -> Table:
    """What the verdict rests on."""
    rows = [
        (
            effect.says,
            str(result.intervals[effect.name]),
            f"above {effect.above:g}",
            Mark(
                effect.verdict(result.intervals[effect.name]).value,
                _MARKS[effect.verdict(result.intervals[effect.name])],
            ),
        )
        for effect in result.effects
    ]
    return Table(("effect", "here [95 %]", "needed", "verdict"), rows, caption="Stated test")


def numbers_table(result: Result) -> Table:
    """Every number that was measured."""
    rows = [(name, str(interval)) for name, interval in result.intervals.items()]
    seeds = ", ".join(map(str, result.seeds)) or "none"
    return Table(("number", "value [95 %]"), rows, caption=f"All numbers, seeds {seeds}")


def chart_figure(chart: Chart, result: Result) -> Figure | None:
    """A chart of the finding's numbers, or None where none of them was measured."""
    series = {label: points(result, prefix) for label, prefix in chart.series.items()}
    series = {label: found for label, found in series.items() if found}
    if not series:
        return None
    caption = f"{result.finding.paper}: {chart.y} by {chart.x}, 95 % intervals"
    return Figure(draw(lambda axes: plot(axes, chart, series)), caption)


def points(result: Result, prefix: str) -> dict[str, Interval]:
    """x → interval, of the numbers named "prefix/x"."""
    return {
        name.removeprefix(f"{prefix}/"): interval
        for name, interval in result.intervals.items()
        if name.startswith(f"{prefix}/") and interval.is_known
    }


def plot(axes: Any, chart: Chart, series: dict[str, dict[str, Interval]]) -> None:
    """Lines or bars with error bars."""
    names = list(dict.fromkeys(x for found in series.values() for x in found))
    numeric = all(_is_number(x) for x in names)
    places = {x: float(x) if numeric and chart.kind == "lines" else i for i, x in enumerate(names)}
    width = 0.8 / len(series)
    for i, (label, found) in enumerate(series.items()):
        shift = (i - (len(series) - 1) / 2) * width if chart.kind == "bars" else 0.0
        xs = [places[x] + shift for x in found]
        ys = [interval.value for interval in found.values()]
        errors = [
            [max(v.value - v.low, 0.0) for v in found.values()],
            [max(v.high - v.value, 0.0) for v in found.values()],
        ]
        if chart.kind == "bars":
            axes.bar(xs, ys, width * 0.9, yerr=errors, label=label)
        else:
            axes.errorbar(xs, ys, yerr=errors, marker="o", label=label)
    if not (numeric and chart.kind == "lines"):
        axes.set_xticks(list(places.values()), names)
    if chart.log_x:
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(places.values()), names)
    if chart.reference is not None:
        axes.axhline(chart.reference, color="#6b6f73", linewidth=0.8)
    axes.set(xlabel=chart.x, ylabel=chart.y)
    axes.legend()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
