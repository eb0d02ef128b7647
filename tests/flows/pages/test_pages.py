"""Pages that need nothing but themselves: escaped, the same each time, drawn by a real browser."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flows.pages.figures import COLOURS, draw
from flows.pages.page import (
    Answer,
    Facts,
    Figure,
    Items,
    Link,
    Mark,
    Page,
    Section,
    SideBySide,
    Table,
    Text,
    escaped,
)

HOSTILE = "\"'><script>document.title='hit'</script><img src=x onerror=\"document.title='hit'\">"


def lines(axes) -> None:
    axes.errorbar([1, 2, 3], [0.5, 0.6, 0.7], yerr=0.05, marker="o", label="gold")
    axes.bar([1, 2], [0.2, 0.3], color=COLOURS[1])
    axes.set(title="<b>Win rate</b>", ylim=(0, 1))
    axes.legend()


def two(both) -> None:
    for axes in both:
        axes.plot([0, 1], [1, 0])
    both[1].imshow([[1, 2], [3, 4]], extent=(0, 1, 0, 1))


def page() -> Page:
    blocks = [
        Table(["version", HOSTILE], [[HOSTILE, Mark(HOSTILE, "good")], ["v2", "0.7"]], HOSTILE),
        Figure(draw(lines), f"Figure 11 {HOSTILE}"),
        Figure(draw(lines), "The same drawing once more"),
        Figure(draw(two, columns=2), "Two", alt="two axes"),
        SideBySide(HOSTILE, [Answer(HOSTILE, HOSTILE, HOSTILE), Answer("v2", "\x00\n")], HOSTILE),
        Facts({HOSTILE: HOSTILE}),
        Items([HOSTILE, Link(HOSTILE, "http://h/?a=1&b=\"2'")]),
        Text(HOSTILE),
    ]
    return Page(HOSTILE, HOSTILE, [Section("Versions", blocks), Section(HOSTILE, [])])


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]


@pytest.fixture(scope="module")
def markup() -> str:
    return page().html()


@pytest.fixture(scope="module")
def tags(markup: str) -> Tags:
    found = Tags()
    found.feed(markup)
    return found


def test_the_same_page_is_the_same_bytes(markup: str):
    assert page().html() == markup


def test_no_element_comes_from_a_text(tags: Tags):
    assert not tags.names & {"script", "b", "img"}
    assert not [name for name, _ in tags.attributes if name.startswith("on")]


def test_nothing_is_loaded(markup: str, tags: Tags):
    loaded = [
        value
        for name, value in tags.attributes
        if name in ("src", "href", "xlink:href", "data", "srcset")
        and not value.startswith(("#", "data:", "http://h/"))
    ]
    assert loaded == []
    assert "url(http" not in markup
    assert "@import" not in markup
    assert "default-src 'none'" in markup


def test_ids_are_unique_and_what_is_meant_is_there(markup: str, tags: Tags):
    """Several SVGs of matplotlib's on one page would share their ids."""
    assert len(tags.ids) == len(set(tags.ids))
    meant = set(re.findall(r'href="#([^"]+)"', markup)) | set(re.findall(r"url\(#(.+?)\)", markup))
    assert meant
    assert meant <= set(tags.ids)


def test_a_figure_has_the_colours_of_the_page(markup: str):
    body = markup[markup.index("<main>") :]
    assert "var(--series-1)" in body
    assert "var(--series-2)" in body
    assert "var(--ink)" in body
    assert not [colour for colour in COLOURS if colour in body]


def test_a_figure_does_not_depend_on_the_users_matplotlibrc():
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "figure.dpi": 300}):
        assert draw(lines) == draw(lines)
        changed = draw(lines)
    assert changed == draw(lines)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<&>\"'", "&lt;&amp;&gt;&quot;&#x27;"),
        ("a\x00b\x1b[31m", "a␀b␛[31m"),
        ("a\r\nb\rc\td", "a\nb\nc\td"),
        ("\ud800\x9c", "\ufffd\ufffd"),
    ],
    ids=["markup", "controls", "newlines", "surrogate"],
)
def test_text_that_html_cannot_hold(text: str, shown: str):
    assert escaped(text) == shown


@pytest.mark.parametrize(
    ("address", "leads"),
    [
        ("https://h/a?b#c", True),
        ("v3/index.html", True),
        ("#versions", True),
        ("file:///home/x", True),
        ("javascript:alert(1)", False),
        (" javascript:alert(1)", False),
        ("java\nscript:alert(1)", False),
        ("data:text/html,x", False),
        ("vbscript:x", False),
    ],
    ids=["https", "path", "anchor", "file", "js", "js-space", "js-newline", "data", "vbscript"],
)
def test_a_link_that_could_run_something_is_text(address: str, leads: bool):
    assert ("<a " in Link("here", address).html()) is leads


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_every_figure(scheme: str, tmp_path: Path, look_at):
    page().write(tmp_path / "new" / "index.html")
    seen = look_at(
        tmp_path / "new" / "index.html",
        color_scheme=scheme,
        viewport={"width": 420, "height": 800},
    )
    assert seen.errors == []
    assert seen.requests == []
    assert seen.drawn == [True, True, True]
    assert seen.too_wide <= 0
    assert HOSTILE in seen.text
