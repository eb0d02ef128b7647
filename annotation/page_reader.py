"""Reading the annotator's page as a program: for load tests, demonstrations and our own tests."""

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class WorkPage:
    """What the work area of a task shows; `slot_id` is None when nothing is left."""

    slot_id: int | None = None
    category: str | None = None
    csrf: str = ""
    submission_id: str = ""
    shown: str = ""
    """Which sides the page shows, for its form to send back."""
    undo_id: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    left: str = ""
    right: str = ""
    notice: str = ""


def read_page(html: str) -> WorkPage:
    """The work area in a page or in a part of one."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.page


class _Reader(HTMLParser):
    """Collects fields by the form they are in, and texts by the element they are in."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = WorkPage()
        self._form = ""
        self._place = ""
        self._in_text = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where the reader is; take what attributes say."""
        given = {name: value or "" for name, value in attrs}
        classes = given.get("class", "").split()
        if tag == "article" and given.get("data-slot"):
            self.page.slot_id = int(given["data-slot"])
            self.page.category = given.get("data-category")
        elif tag == "form":
            self._form = given.get("action", "")
        elif tag == "input":
            self._take_field(given)
        elif tag == "li" and "data-role" in given:
            self.page.messages.append({"role": given["data-role"], "content": ""})
            self._place = "message"
        elif given.get("id") in ("response-left", "response-right"):
            self._place = given["id"].removeprefix("response-")
        elif "notice" in classes:
            self._place = "notice"
        self._in_text = tag == "code" or "prose" in classes or self._place == "notice"

    def handle_endtag(self, tag: str) -> None:
        """Texts stand in <div class="prose"> and <code>, which hold no other element."""
        self._in_text = self._place == "notice" and tag != "div"
        if tag in ("section", "ol") or (tag == "div" and self._place == "notice"):
            self._place = ""

    def handle_data(self, data: str) -> None:
        """Add text to the place it stands in."""
        if not self._in_text:
            return
        if self._place == "message":
            self.page.messages[-1]["content"] += data
        elif self._place in ("left", "right", "notice"):
            setattr(self.page, self._place, getattr(self.page, self._place) + data)

    def _take_field(self, given: dict[str, str]) -> None:
        name, value = given.get("name"), given.get("value", "")
        if name == "csrf":
            self.page.csrf = value
        elif name == "submission_id" and self._form.endswith("/label"):
            self.page.submission_id = value
        elif name == "shown" and self._form.endswith("/label"):
            self.page.shown = value
        elif name == "submission_id" and self._form == "/undo":
            self.page.undo_id = value
