"""Figures as inline SVG that looks the same on every machine and follows the page's colours.

matplotlib draws with the palette's light colours; in the SVG each of them becomes a variable of
the page, so that a dark page, or paper, has colours of its own. Text stays text.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

_INK, _LINE = "#22282b", "#ddd7cc"
PALETTE = {
    "#1f6f78": "#7cc4cc",
    "#b4501e": "#f0a073",
    "#4a5fb3": "#a7b4f2",
    "#8a6d00": "#d9bd55",
    "#8e3f7c": "#e09bd0",
    "#3f7d3a": "#93cf8d",
    "#6b6f73": "#b3b8bc",
}
"""Colour of each series on a light page, and on a dark one; told apart by the colour-blind."""

COLOURS = tuple(PALETTE)
"""The series' colours, for plots that name them."""

_VARIABLES = {
    _INK: "var(--ink)",
    _LINE: "var(--line)",
    **{light: f"var(--series-{i})" for i, light in enumerate(PALETTE, start=1)},
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llama2-rlhf",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it: equal measures everywhere
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": "small",
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
    "errorbar.capsize": 3.0,
}
_ID = re.compile(r'(\bid="|href="#|url\(#)')
_SHEET = re.compile(r"\s*<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
"""It would be the sheet of the whole page, which has these rules for figures."""
_FONT = re.compile(r"'DejaVu Sans'[^;\"]*")


@dataclass(frozen=True)
class Drawing:
    """An SVG without its label, and with marks where its ids take a prefix."""

    markup: str

    def svg(self, label: str) -> str:
        """The element; `label` is escaped already."""
        prefix = f"f{sha256(f'{label}{self.markup}'.encode()).hexdigest()[:10]}-"
        inside = _ID.sub(rf"\g<1>{prefix}", self.markup)
        return inside.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def draw(
    plot: Callable[[Any], object], size: tuple[float, float] = (7.0, 3.6), columns: int = 1
) -> Drawing:
    """What `plot` draws on an Axes, or on an array of `columns` of them, in inches.

    matplotlib is imported here, since it takes a second.
    """
    from matplotlib.figure import Figure

    out = io.StringIO()
    with style():
        figure = Figure(figsize=size, layout="constrained")
        plot(figure.subplots(ncols=columns))
        figure.savefig(out, format="svg", metadata={"Date": None})
    return Drawing(_themed(out.getvalue()))


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures, whatever the user's matplotlibrc says."""
    from cycler import cycler
    from matplotlib import rc_context, rcdefaults

    with rc_context():
        rcdefaults()
        settings: Any = {**_STYLE, "axes.prop_cycle": cycler(color=list(COLOURS))}
        with rc_context(settings):
            yield


def page_colours() -> str:
    """The series' variables for the page's sheet: light, dark where the reader wants it."""
    light = "".join(f"--series-{i}:{c};" for i, c in enumerate(PALETTE, start=1))
    dark = "".join(f"--series-{i}:{c};" for i, c in enumerate(PALETTE.values(), start=1))
    on_screen = "@media screen and (prefers-color-scheme: dark)"
    return f":root{{{light}}}{on_screen}{{:root{{{dark}}}}}"


def _themed(svg: str) -> str:
    """Without prologue, metadata and a size of its own; colours and font are the page's."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = _SHEET.sub("", svg, count=1)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg)
    for colour, variable in _VARIABLES.items():
        svg = re.sub(colour, variable, svg, flags=re.IGNORECASE)
    return _FONT.sub("var(--font)", svg).strip()
