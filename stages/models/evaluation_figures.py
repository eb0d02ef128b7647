"""The figures of an evaluation, drawn from rows of its tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_contracts.ratings import Domain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOLD = "gold"
"""Name of the independent judge; its lines are solid."""


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG, the same bytes for the same figure."""
    # a fixed "Software" field would name matplotlib's version in the artifact's digest
    figure.savefig(path, dpi=120, metadata={"Software": None})


def win_rate_figure(win_rates: list[dict[str, Any]]) -> "Figure":
    """Win rate against one opponent by version, both domains, with 95 % intervals (Figure 11)."""
    figure, axes = _one_plot()
    for domain in Domain:
        for name in sorted({r["judge"] for r in win_rates}):
            series = [r for r in win_rates if (r["domain"], r["judge"]) == (domain, name)]
            label = f"{domain}, {name.replace('_', ' ')}"
            _plot_series(axes, series, "version", "win_rate", label, solid=name == GOLD)
    axes.axhline(0.5, color="grey", linewidth=0.8)
    axes.set(ylim=(0, 1), ylabel="win rate against SFT", title="Win rate by version, 95 %")
    _add_legend(axes)
    return figure


def retention_figure(kept: list[dict[str, Any]]) -> "Figure":
    """Share of answers that keep the first turn's instruction, by turn (Table 30)."""
    figure, axes = _one_plot()
    for version in dict.fromkeys(r["version"] for r in kept):
        series = [r for r in kept if r["version"] == version]
        _plot_series(axes, series, "group", "rate", version, solid=True)
    axes.set(ylim=(0, 1.02), ylabel="kept", title="Instruction of turn 1 kept, 95 %")
    _add_legend(axes)
    return figure


def calibration_figure(rows: list[dict[str, Any]]) -> "Figure":
    """Gold score by tenths of the reward model's score (Figure 29)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    for axes, domain in zip(np.atleast_1d(figure.subplots(1, len(Domain))), Domain, strict=True):
        points = calibration_points(*judged_twice(rows, domain))
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o")
        axes.set(ylim=(0, 1), xlabel=f"{domain} reward model", ylabel="gold", title=str(domain))
    return figure


def judged_twice(rows: list[dict[str, Any]], domain: Domain) -> tuple[list[float], list[float]]:
    """Scores of the reward model and of the independent judge of the same answers."""
    own = [
        (row[f"{domain}_score"], row[f"gold_{domain}"])
        for row in rows
        if row["domain"] == domain and row["finished"] and row[f"gold_{domain}"] is not None
    ]
    return [score for score, _ in own], [gold for _, gold in own]


def calibration_points(
    scores: list[float], gold: list[float], num_groups: int = 10
) -> list[tuple[float, float]]:
    """Mean score and mean gold score of groups of equal size, from the lowest scores up."""
    order = np.argsort(scores, kind="stable")
    groups = [group for group in np.array_split(order, num_groups) if len(group)]
    return [(float(np.take(scores, g).mean()), float(np.take(gold, g).mean())) for g in groups]


def _one_plot() -> tuple["Figure", Any]:
    from matplotlib.figure import Figure  # here, since it takes a second

    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()


def _add_legend(axes: Any) -> None:
    """Where there is a series: matplotlib warns of an empty one."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def _plot_series(
    axes: Any, series: list[dict[str, Any]], along: str, value: str, label: str, *, solid: bool
) -> None:
    if not series:
        return
    rates = np.array([r[value] for r in series])
    low = rates - [r["low"] for r in series]
    high = [r["high"] for r in series] - rates
    axes.errorbar(
        [r[along] for r in series],
        rates,
        yerr=np.abs(np.stack([low, high])),
        marker="o",
        capsize=3,
        linestyle="-" if solid else "--",
        label=label,
    )
