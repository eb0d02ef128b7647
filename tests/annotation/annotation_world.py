"""A small batch, a service over it, and people who use it through the test client."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from fastapi.testclient import TestClient
from starlette.responses import Response

from annotation.accounts import accept, invite
from annotation.batches import BatchPlan, publish
from annotation.page_reader import WorkPage, read_page
from annotation.storage.database import Database
from annotation.storage.schema import Role, User
from annotation.web.visitors import Service

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
PASSWORD = "correct horse battery staple"


class Clock:
    """A clock that stands still until it is moved; every reading is a second later."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def move(self, **amount: float) -> None:
        self.now += timedelta(**amount)


def comparison(name: str, domain: str = "helpfulness", **changes: object) -> dict:
    row = {
        "comparison_id": name,
        "prompt_id": f"prompt-of-{name}",
        "domain": domain,
        "batch": 1,
        "category": None,
        "messages": [{"role": "user", "content": f"Question {name}?"}],
        "response_a": f"Answer one to {name}",
        "response_b": f"Answer two to {name}",
        "model_a": "v1",
        "model_b": "sft",
        "temperature_a": 0.75,
        "temperature_b": 1.0,
    }
    return row | changes


def comparisons(count: int, domain: str = "helpfulness") -> list[dict]:
    return [comparison(f"{domain}-{i}", domain) for i in range(count)]


def publish_rows(database: Database, rows: list[dict], week: int = 1, gold=None, **plan) -> None:
    with database.writing() as session:
        publish(session, week, rows, BatchPlan(**({"check_every": 0} | plan)), START, gold)


def add_user(database: Database, name: str, role: Role = Role.annotator) -> User:
    with database.writing() as session:
        return accept(session, invite(session, role, START, None), name, PASSWORD, START)


class Browser:
    """Somebody who is logged in; forms carry what the page put into them."""

    def __init__(self, app, name: str) -> None:
        self.client = TestClient(app, base_url="http://annotation.test", follow_redirects=False)
        self.name = name
        self.csrf = ""

    def log_in(self, password: str = PASSWORD) -> Response:
        reply = self.client.post("/login", data={"username": self.name, "password": password})
        if reply.status_code == 303:
            self.csrf = read_page(self.client.get("/").text).csrf
        return reply

    def open(self, domain: str = "helpfulness") -> WorkPage:
        reply = self.client.get(f"/tasks/{domain}")
        assert reply.status_code == 200, reply.text
        return read_page(reply.text)

    def post(self, path: str, fields: Mapping[str, str] | None = None, htmx: bool = False):
        headers = {"HX-Request": "true"} if htmx else {}
        return self.client.post(path, data={"csrf": self.csrf, **(fields or {})}, headers=headers)

    def label(self, page: WorkPage, choice: str = "left-better", **fields: str):
        form = {"submission_id": page.submission_id, "shown": page.shown, "choice": choice}
        return self.post(f"/slots/{page.slot_id}/label", form | fields, htmx=True)


def browser(service: Service, app, name: str, role: Role = Role.annotator) -> Browser:
    add_user(service.database, name, role)
    somebody = Browser(app, name)
    assert somebody.log_in().status_code == 303
    return somebody
