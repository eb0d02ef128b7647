"""No text of a model, an annotator or a lead becomes markup."""

from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from annotation_world import browser, comparison, publish_rows
from xss_payloads import PAYLOADS

from annotation.guidelines import as_html
from annotation.storage.schema import Role

OWN_SCRIPTS = {"/static/htmx-2.0.11.min.js", "/static/page.js"}


class Markup(HTMLParser):
    """What a browser would act on in a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.handlers: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        if tag == "script":
            self.scripts.append(given.get("src") or "inline")
        self.handlers += [name for name in given if name.startswith(("on", "hx-on", "style"))]
        for name in ("href", "src", "action", "formaction", "hx-post", "hx-get"):
            if name in given:
                self.addresses.append((given[name] or "").strip().lower())


def assert_harmless(html: str) -> None:
    markup = Markup(html)
    assert set(markup.scripts) <= OWN_SCRIPTS
    assert markup.handlers == []
    assert not markup.tags & {"iframe", "object", "embed", "svg", "math", "base", "img", "style"}
    schemes = {urlsplit(address).scheme for address in markup.addresses}
    assert schemes <= {"", "http", "https", "mailto"}


def test_the_corpus_is_large_enough():
    assert len(set(PAYLOADS)) >= 100


def test_prompts_responses_and_categories_are_text(service, app):
    """Each of a few items carries many payloads, in every field that is shown."""
    parts = [PAYLOADS[i::5] for i in range(5)]
    rows = [
        comparison(
            f"c{i}",
            messages=[{"role": "user", "content": "\n".join(part)}],
            response_a="A: " + " ".join(part),
            response_b="B: " + "\n```\n".join(part),
            category=part[0],
        )
        for i, part in enumerate(parts)
    ]
    publish_rows(service.database, rows)
    ann = browser(service, app, "ann")
    for _ in parts:
        assert_harmless(ann.client.get("/tasks/helpfulness").text)
        page = ann.open()
        by_side = {page.left[:2]: page.left, page.right[:2]: page.right}
        part = next(p for p in parts if by_side["A:"] == "A: " + " ".join(p))
        assert page.messages[0]["content"] == "\n".join(part)
        assert by_side["B:"] == "B: " + "\n```\n".join(part)
        ann.label(page)


def test_what_annotators_write_is_text_for_the_lead(service, app):
    publish_rows(service.database, [comparison(f"c<b>{i}") for i in range(3)])
    ann = browser(service, app, "ann")
    lead = browser(service, app, "lea", Role.lead)
    for i in range(3):
        page = ann.open()
        reason = " ".join(PAYLOADS[i * 20 : i * 20 + 20])[:2000]
        form = {"submission_id": f"flag-000{i}", "kind": "flag", "reason": reason}
        ann.post(f"/slots/{page.slot_id}/pass", form)
    html = lead.client.get("/lead").text
    assert_harmless(html)
    assert "&lt;script&gt;" in html


@pytest.mark.parametrize("start", range(0, len(PAYLOADS), 10))
def test_guidelines_are_markdown_without_html(start):
    for payload in PAYLOADS[start : start + 10]:
        assert_harmless(as_html(payload))


def test_a_guideline_is_harmless_where_it_is_edited_and_where_it_is_shown(service, app):
    lead = browser(service, app, "lea", Role.lead)
    lead.post("/lead/guidelines/helpfulness", {"markdown": "\n\n".join(PAYLOADS)})
    for path in (
        "/guidelines/helpfulness", "/lead/guidelines/helpfulness", "/tasks/helpfulness",
    ):  # fmt: skip
        assert_harmless(lead.client.get(path).text)


def test_names_on_the_log_in_page_are_text(app, service):
    ann = browser(service, app, "ann")
    for payload in PAYLOADS[::8]:
        reply = ann.client.post("/login", data={"username": payload, "password": "x"})
        assert_harmless(reply.text)
