"""HTML pages that need nothing but themselves: no script, no font, no image from elsewhere.

A page is a value: sections of blocks, each of which knows its own HTML. Every text is escaped
here and nowhere else, and the page's policy forbids the browser to run or to load anything.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from data_contracts.durable import write_durably
from flows.pages.figures import Drawing, page_colours

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_SHEET = Path(__file__).with_name("page.css")
_CONTROLS = {c: 0x2400 + c for c in range(32) if chr(c) not in "\t\n"} | {
    0x0D: "\n",
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),
}
"""What HTML does not allow or UTF-8 cannot write, as signs that stand for it."""

_FOLLOWED = ("http://", "https://", "file://", "#")
"""A link leads to one of these, or is a path beside the page."""


class Block(Protocol):
    """A part of a section."""

    def html(self) -> str:
        """The block's markup."""
        ...


@dataclass(frozen=True)
class Link:
    """Text that leads to an address; an address that could run something stays plain text."""

    text: str
    to: str

    def html(self) -> str:
        """The link."""
        is_path = re.match(r"[\w./%~-]+(#[\w-]+)?$", self.to) is not None
        if not (is_path or self.to.lower().startswith(_FOLLOWED)):
            return escaped(self.text)
        return f'<a href="{escaped(self.to)}">{escaped(self.text)}</a>'


@dataclass(frozen=True)
class Mark:
    """A verdict that is told by its word and, beside it, by its colour."""

    text: str
    kind: Literal["good", "bad", "unclear"]

    def html(self) -> str:
        """The verdict."""
        return f'<span class="mark {self.kind}">{escaped(self.text)}</span>'


Cell = str | Link | Mark


@dataclass(frozen=True)
class Text:
    """Paragraphs; an empty line parts them."""

    text: str

    def html(self) -> str:
        """The paragraphs."""
        return "".join(f"<p>{escaped(part)}</p>" for part in self.text.split("\n\n"))


@dataclass(frozen=True)
class Items:
    """A list of lines."""

    items: Sequence[Cell]

    def html(self) -> str:
        """The list."""
        return f"<ul>{''.join(f'<li>{_cell(item)}</li>' for item in self.items)}</ul>"


@dataclass(frozen=True)
class Facts:
    """Names and values, as at the head of a report."""

    facts: dict[str, Cell]

    def html(self) -> str:
        """A definition list."""
        rows = (f"<dt>{escaped(name)}</dt><dd>{_cell(v)}</dd>" for name, v in self.facts.items())
        return f"<dl>{''.join(rows)}</dl>"


@dataclass(frozen=True)
class Table:
    """Rows under headers; the first column names the row, the others stand to the right."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    text_columns: Sequence[int] = ()
    """Columns beside the first that hold words and stand to the left."""

    def html(self) -> str:
        """The table, in a box of its own that scrolls where it is too wide."""
        caption = f"<caption>{escaped(self.caption)}</caption>" if self.caption else ""
        head = "".join(f"<th{self._side(i)}>{escaped(h)}</th>" for i, h in enumerate(self.headers))
        body = "".join(f"<tr>{self._row(row)}</tr>" for row in self.rows)
        label = escaped(self.caption or "table")
        return (
            f'<div class="table" tabindex="0" role="region" aria-label="{label}"><table>{caption}'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _row(self, row: Sequence[Cell]) -> str:
        assert len(row) == len(self.headers), row
        first, *rest = row
        cells = (f"<td{self._side(i)}>{_cell(cell)}</td>" for i, cell in enumerate(rest, start=1))
        return f'<th scope="row">{_cell(first)}</th>{"".join(cells)}'

    def _side(self, column: int) -> str:
        return "" if column == 0 or column in self.text_columns else ' class="number"'


@dataclass(frozen=True)
class Figure:
    """A drawing with what it shows; `alt` is read to those who do not see it."""

    drawing: Drawing
    caption: str
    alt: str = ""

    def html(self) -> str:
        """The drawing inline; ids in it are its own, whatever else stands on the page."""
        svg = self.drawing.svg(escaped(self.alt or self.caption))
        return f"<figure>{svg}<figcaption>{escaped(self.caption)}</figcaption></figure>"


@dataclass(frozen=True)
class Answer:
    """One of several texts that stand side by side."""

    title: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class SideBySide:
    """A prompt, and what each version answered."""

    prompt: str
    answers: Sequence[Answer]
    note: str = ""

    def html(self) -> str:
        """Columns; one below the other where the window is narrow."""
        note = f'<p class="note">{escaped(self.note)}</p>' if self.note else ""
        cards = "".join(
            f"<div><h4>{escaped(a.title)}</h4>{_verbatim(a.text)}"
            f'<p class="note">{escaped(a.note)}</p></div>'
            for a in self.answers
        )
        return (
            f'<article class="sample">{note}{_verbatim(self.prompt)}'
            f'<div class="answers">{cards}</div></article>'
        )


@dataclass(frozen=True)
class Section:
    """A heading, which the page's contents lead to, and what stands under it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Its address on the page; two sections of one title would share it."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "section"

    def html(self) -> str:
        """The section."""
        blocks = "".join(block.html() for block in self.blocks)
        return f'<section id="{self.anchor}"><h2>{escaped(self.title)}</h2>{blocks}</section>'


@dataclass(frozen=True)
class Page:
    """A whole document."""

    title: str
    lead: str
    sections: Sequence[Section] = field(default_factory=list)

    def html(self) -> str:
        """The document, which is the same for the same parts."""
        contents = "".join(
            f'<li><a href="#{s.anchor}">{escaped(s.title)}</a></li>' for s in self.sections
        )
        body = "".join(section.html() for section in self.sections)
        sheet = _SHEET.read_text("utf-8").replace("/*colours*/", page_colours())
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
            f"<title>{escaped(self.title)}</title><style>{sheet}</style></head><body>"
            f"<header><h1>{escaped(self.title)}</h1>{Text(self.lead).html()}</header>"
            f'<nav aria-label="Contents"><ul>{contents}</ul></nav><main>{body}</main>'
            f"</body></html>\n"
        )

    def write(self, file: Path) -> None:
        """Write the document under its name in one step; folders are made."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(file, self.html().encode())


def escaped(text: str) -> str:
    """Text as HTML shows it, in elements and in quoted attributes."""
    return html.escape(text.replace("\r\n", "\n").translate(_CONTROLS))


def _verbatim(text: str) -> str:
    # a newline after <pre> would be swallowed
    return f'<pre dir="auto">\n{escaped(text)}</pre>'


def _cell(cell: Cell) -> str:
    return escaped(cell) if isinstance(cell, str) else cell.html()
