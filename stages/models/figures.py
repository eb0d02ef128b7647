"""Figures of an evaluation, as in the paper."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # importing it takes a second, which only those who draw wait for
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_SIZE_INCHES = (7, 4)


def win_rates(rows: Sequence[Row], solid: str) -> "Figure":
    """Win rate against SFT by version, domain and judge (Figure 11); `solid` is a judge."""
    figure = _figure()
    axes = figure.subplots()
    for domain, judge in sorted({(row["domain"], row["judge"]) for row in rows}):
        series = [row for row in rows if (row["domain"], row["judge"]) == (domain, judge)]
        label = f"{domain}, {judge.replace('_', ' ')}"
        _plot_series(axes, series, "version", "win_rate", label, judge == solid)
    axes.axhline(0.5, color="grey", linewidth=0.8)
    axes.set(ylim=(0, 1), ylabel="win rate against SFT", title="Win rate by version, 95 %")
    axes.legend(fontsize="small")
    return figure


def retention(rows: Sequence[Row]) -> "Figure":
    """How often the first turn's instruction is kept, by turn and version (Table 30)."""
    figure = _figure()
    axes = figure.subplots()
    for version in dict.fromkeys(row["version"] for row in rows):
        series = [row for row in rows if row["version"] == version]
        _plot_series(axes, series, "group", "rate", version, solid=True)
    axes.set(ylim=(0, 1.02), ylabel="kept", title="Instruction of turn 1 kept, 95 %")
    axes.legend(fontsize="small")
    return figure


def calibration(points: Mapping[str, Sequence[tuple[float, float]]]) -> "Figure":
    """Gold score by groups of the reward model's score, domain by domain (Figure 29)."""
    figure = _figure()
    many_axes = figure.subplots(1, len(points), squeeze=False)[0]
    for axes, (domain, pairs) in zip(many_axes, points.items(), strict=True):
        axes.plot([x for x, _ in pairs], [y for _, y in pairs], marker="o")
        axes.set(ylim=(0, 1), xlabel=f"{domain} reward model", ylabel="gold", title=str(domain))
    return figure


def save(figure: "Figure", path: Path) -> None:
    """As PNG."""
    # a fixed "Software" field would name matplotlib's version in the artifact's digest
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _figure() -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=_SIZE_INCHES, layout="constrained")


def _plot_series(
    axes: Any, series: Sequence[Row], along: str, value: str, label: str, solid: bool
) -> None:
    rates = np.array([row[value] for row in series])
    low = rates - [row["low"] for row in series]
    high = [row["high"] for row in series] - rates
    axes.errorbar(
        [row[along] for row in series],
        rates,
        yerr=np.abs(np.stack([low, high])),
        marker="o",
        capsize=3,
        linestyle="-" if solid else "--",
        label=label,
    )
