"""The page in a real Chromium: the whole protocol, by keyboard and by mouse, and what it shows."""

import shutil
import subprocess
import tarfile
from collections.abc import Iterator

import pytest
from annotation_model import served
from annotation_views import VIEWS, inhabited_service, log_in
from annotation_world import PASSWORD, START, add_user, comparison, comparisons, publish_rows
from sqlalchemy import select
from xss_payloads import PAYLOADS

from annotation import guidelines
from annotation.accounts import audit, invite
from annotation.labelling import Answer, Pass, pass_on, submit
from annotation.settings import AnnotationSettings, LiveModel
from annotation.storage.database import Database
from annotation.storage.schema import Entry, Role, User
from annotation.web.app import create_app
from annotation.web.visitors import Service
from annotation.work_queue import claim
from data_contracts.ratings import Domain

pytestmark = pytest.mark.slow

AXE = "axe-core@4.14.1"

STAY_HERE = """for (const link of document.querySelectorAll("a:not([href^='javascript:' i])"))
  link.addEventListener("click", (event) => event.preventDefault())"""
"""A link that only leads elsewhere may stand in a guideline."""


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from the npm registry."""
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm is installed")
    packed = subprocess.run([npm, "pack", AXE], cwd=folder, capture_output=True, timeout=120)
    if packed.returncode:
        pytest.skip("axe-core cannot be had from the npm registry")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.fixture
def url(database: Database) -> Iterator[str]:
    live = LiveModel(url="http://127.0.0.1:9/v1", model="v1")
    service = Service(database, AnnotationSettings(live_models=(live,)))
    for name, role in (("ann", Role.annotator), ("lea", Role.lead), ("adm", Role.admin)):
        add_user(database, name, role)
    with served(create_app(service)) as address:
        yield address


class Window:
    """A page of somebody who is logged in, or of nobody; what its console says is kept."""

    def __init__(self, chromium, url: str, name: str, **context) -> None:
        settings = {"viewport": {"width": 1280, "height": 800}} | context
        self.context = chromium.new_context(**settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda line: self.errors.append(line.text) if line.type == "error" else None,
        )
        self.url = url
        if name:
            log_in(self.page, url, name)

    def go(self, path: str) -> None:
        self.page.goto(self.url + path)

    def slot(self) -> str | None:
        return self.page.locator("article").first.get_attribute("data-slot", timeout=5_000)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def poke(self, places: str) -> None:
        """Touch every such place as a person would; nothing that is shown there runs."""
        self.page.wait_for_timeout(200)  # for what loads or starts by itself
        self.page.evaluate(STAY_HERE)
        for place in self.page.locator(places).all():
            for event in ("mouseover", "pointerenter", "click", "focus"):
                place.dispatch_event(event)
        assert self.page.evaluate("window.hit") is None

    def wait_for_next(self, before: str | None) -> None:
        self.page.wait_for_function(
            "before => document.querySelector('article')?.dataset.slot !== before", arg=before
        )


def entries(database: Database) -> list[Entry]:
    with database.reading() as session:
        return list(session.scalars(select(Entry).order_by(Entry.id)))


def test_the_whole_protocol_by_keyboard_alone(chromium, url, database):
    publish_rows(database, comparisons(5) + comparisons(3, "safety"))
    window = Window(chromium, url, "ann")
    window.go("/tasks/helpfulness")
    first = window.slot()
    window.press("2")  # the left one is better
    window.wait_for_next(first)
    window.press("u")
    window.page.wait_for_selector(f"article[data-slot='{first}']")
    window.press("8")
    window.wait_for_next(first)
    skipped = window.slot()
    window.press("s")
    window.page.keyboard.type("7 of 8 words make no sense")  # digits in a field are no choice
    window.press("Tab", "Enter")
    window.wait_for_next(skipped)
    window.press("e")
    window.page.keyboard.type("A better answer, by hand.")
    window.press("Escape")
    edited = window.slot()
    window.press("1")
    window.wait_for_next(edited)

    window.go("/tasks/safety")
    before = window.slot()
    window.press("w", "o", "1")  # A unsafe, B safe, and A chosen: refused
    window.page.wait_for_selector("#notice .notice")
    assert "you chose the unsafe response" in window.page.inner_text("#notice")
    assert window.slot() == before
    window.press("7")
    window.wait_for_next(before)

    label, undo, relabel, skip, edit, safety = entries(database)
    assert [e.kind for e in (label, undo, relabel, skip, edit, safety)] == [
        "label", "undo", "label", "skip", "label", "label",
    ]  # fmt: skip
    assert (label.rating, relabel.rating) == ("better", "significantly_better")
    assert skip.reason == "7 of 8 words make no sense"
    assert edit.edited_response == "A better answer, by hand."
    assert (safety.rating, safety.safety_label) == ("better", "chosen_safe_other_unsafe")
    assert [e for e in window.errors if "422" not in e] == []


def test_the_whole_protocol_by_mouse(chromium, url, database):
    publish_rows(database, comparisons(2) + comparisons(2, "safety"))
    window = Window(chromium, url, "ann")
    page = window.page
    page.click("text=Label responses >> nth=0")
    first = window.slot()
    page.click("button[value=left-slightly_better]")
    page.click("text=Undo my last label")
    page.wait_for_selector(f"article[data-slot='{first}']")
    page.click("button[value=right-negligibly_better]")
    window.wait_for_next(first)
    page.click("text=Skip or flag this item")
    page.fill("[name=reason]", "troubling")
    page.click("text=Flag for the lead")
    page.wait_for_selector("text=Nothing left to label here")
    page.click("nav >> text=Safety")
    page.click("[name=left_safety][value=unsafe]")
    page.click("[name=right_safety][value=unsafe]")
    page.click("button[value=right-better]")
    page.wait_for_selector("[name=left_safety]:checked", state="detached")
    kinds = [(e.kind, e.rating, e.safety_label) for e in entries(database)]
    assert kinds == [
        ("label", "slightly_better", None),
        ("undo", None, None),
        ("label", "negligibly_better", None),
        ("flag", None, None),
        ("label", "better", "both_unsafe"),
    ]


def test_no_payload_runs(chromium, url, database):
    """In prompts, responses and the guideline."""
    parts = [PAYLOADS[i::4] for i in range(4)]
    rows = [
        comparison(
            f"c{i}",
            messages=[{"role": "user", "content": "\n".join(part)}],
            response_a="A " + "\n".join(part),
            response_b="B " + " ".join(part),
        )
        for i, part in enumerate(parts)
    ]
    publish_rows(database, rows)
    lead = add_user(database, "lea2", Role.lead)
    with database.writing() as session:
        guidelines.edit(session, Domain.helpfulness, "\n\n".join(PAYLOADS), lead, START)
    window = Window(chromium, url, "lea2")
    for path in ("/guidelines/helpfulness", "/lead/guidelines/helpfulness"):
        window.go(path)
        window.poke(".markdown, .markdown *, textarea")
    window.go("/tasks/helpfulness")
    for _ in parts:
        window.press("g")  # the guideline unfolds
        window.poke(".text, .text *, .markdown, .markdown *")
        assert window.page.url.endswith("/tasks/helpfulness")
        before = window.slot()
        window.press("3")
        window.wait_for_next(before)
    assert len(entries(database)) == 4
    assert window.errors == []  # the policy had nothing to stop: every text was escaped


def label_all_as(database: Database, pick: str) -> None:
    user = add_user(database, f"always-{pick}")
    with database.writing() as session:
        while (slot := claim(session, user, Domain.helpfulness, START)) is not None:
            side = "right" if slot.is_swapped == (pick == "a") else "left"
            answer = Answer(submission_id=f"{pick}-label-{slot.id}", side=side, rating="better")
            submit(session, user, slot.id, answer, START)
            session.flush()


def test_no_name_or_reason_runs(chromium, url, database):
    """In names of users and items, reasons, and the name that a form shows again."""
    publish_rows(database, [comparison(payload) for payload in PAYLOADS], overlap=2)
    label_all_as(database, "a")
    label_all_as(database, "b")
    publish_rows(database, [comparison(f"{payload}!") for payload in PAYLOADS], week=2)
    flagger = add_user(database, "flagger")
    for i, payload in enumerate(PAYLOADS):
        with database.writing() as session:
            slot = claim(session, flagger, Domain.helpfulness, START)
            reason = Pass(submission_id=f"flag-{i:04}", kind="flag", reason=payload)
            pass_on(session, flagger, slot.id, reason, START)
            session.add(
                User(
                    username=f"{i:03}{payload}"[:64],
                    pseudonym=payload[:28] + f"{i:04}",
                    role=Role.annotator,
                    password_hash="!",
                    is_active=True,
                    created_at=START,
                )
            )
            audit(session, START, payload, payload[:64], payload)
    with database.writing() as session:
        invitation = invite(session, Role.annotator, START.replace(year=2100), None)
    window = Window(chromium, url, "adm")
    for path in ("/lead", "/lead/batches/1/disagreements", "/admin/users", "/admin/audit"):
        window.go(path)
        assert "window.hit=1" in window.page.inner_text("main")
        window.poke("td, th, li, h2")
    window.context.clear_cookies()
    for payload in PAYLOADS[::5]:
        window.go(f"/invitations/{invitation}")
        window.page.eval_on_selector(
            "[name=username]", "field => field.removeAttribute('maxlength')"
        )
        window.page.fill("[name=username]", f"{payload} ")
        window.page.fill("[name=password]", PASSWORD)
        window.page.click("text=Make my account")
        window.page.wait_for_selector("text=This user name cannot be used")
        assert window.page.input_value("[name=username]").startswith(payload.replace("\n", ""))
        assert window.page.evaluate("window.hit") is None
    assert [e for e in window.errors if "422" not in e] == []


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"viewport": {"width": 820, "height": 1180}},
        {"color_scheme": "dark"},
    ],
    ids=["laptop", "tablet", "dark"],
)
def test_every_view_is_accessible_and_fits(chromium, database, axe, context):
    with inhabited_service(database) as given:
        windows = {}
        for who, path in VIEWS.values():
            if who not in windows:
                windows[who] = Window(chromium, given["url"], who, **context)
            window = windows[who]
            window.go(path.format(**given))
            assert serious(window.page, axe) == [], (path, context)
            width = window.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert width <= 0, f"{path} is wider than the window"
        errors = [error for window in windows.values() for error in window.errors]
    assert [e for e in errors if "403" not in e] == []


def serious(page, axe: str) -> list[tuple[str, list[str]]]:
    """Violations of WCAG A and AA that axe-core calls serious or critical."""
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        (rule["id"], [node["html"][:120] for node in rule["nodes"]])
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    ]


def test_a_label_that_does_not_get_through_is_kept_in_the_page(chromium, url, database):
    publish_rows(database, comparisons(2))
    window = Window(chromium, url, "ann")
    window.go("/tasks/helpfulness")
    before = window.slot()
    window.context.set_offline(True)
    window.press("2")
    window.page.wait_for_selector("#notice .notice")
    assert "Not saved" in window.page.inner_text("#notice")
    assert window.slot() == before
    window.context.set_offline(False)
    window.press("2")
    window.wait_for_next(before)
    assert len(entries(database)) == 1


def test_a_label_that_was_kept_without_the_page_knowing_is_told_of_and_taken_back(
    chromium, url, database
):
    """The first label of all: the page had nothing to undo when it was loaded."""

    def lose_the_answer(route) -> None:
        route.fetch()
        route.abort()

    publish_rows(database, comparisons(2))
    window = Window(chromium, url, "ann")
    window.go("/tasks/helpfulness")
    before = window.slot()
    assert not window.page.is_visible("text=Undo my last label")
    window.page.route("**/label", lose_the_answer)
    window.press("2")
    window.page.wait_for_selector("#notice >> text=the service does not answer")
    window.page.unroute("**/label")
    window.press("8")
    window.page.wait_for_selector("#notice >> text=your first answer to this item had been kept")
    assert window.slot() == before
    assert [entry.rating for entry in entries(database)] == ["better"]
    assert window.page.is_visible("text=Undo my last label")
    window.press("u")
    window.page.wait_for_selector("#notice .notice", state="detached")
    assert window.slot() == before
    window.press("8")
    window.wait_for_next(before)
    assert [(entry.kind, entry.rating) for entry in entries(database)] == [
        ("label", "better"),
        ("undo", None),
        ("label", "significantly_better"),
    ]
