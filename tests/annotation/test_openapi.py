"""Schemathesis at every route of both services: whatever is sent, none answers with a 5xx."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest
from annotation_model import served, tiny_model, tiny_tokenizer
from annotation_world import START, Browser, add_user, comparisons, publish_rows
from fastapi import FastAPI
from sqlalchemy import update
from starlette.types import Message, Receive, Scope, Send

from annotation.accounts import MIN_PASSWORD_LENGTH, invite
from annotation.labelling import fingerprint
from annotation.model_server.app import create_model_app
from annotation.model_server.engine import Engine
from annotation.settings import AnnotationSettings, LiveModel
from annotation.storage.database import Database
from annotation.storage.schema import Role, Slot, SlotState, User
from annotation.web.app import create_app
from annotation.web.visitors import COOKIE, Service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCHEMATHESIS = "schemathesis==4.32.5"
NUM_ROWS = 20
MAX_IDS = {"slot_id": 2 * NUM_ROWS}
"""What is drawn up to here mostly exists. Few items, since those that are retired take no label."""

TEXTS = {"response_a": "One answer", "response_b": "Another answer"}
SHOWN = [
    fingerprint({"left": left, "right": right}) for left, right in permutations(TEXTS.values())
]
"""What a label's form may say of its sides: all items have the same texts."""

ACCOUNT_FORM = "Body_accept_invitation_invitations__token__post"
MUST_GO_THROUGH = {
    "GET /tasks/{domain}",
    "POST /slots/{slot_id}/label",
    "POST /undo",
    "POST /write/{domain}",
    "POST /lead/items/{item_id}/decision",
    "POST /lead/guidelines/{domain}",
    "POST /admin/users/{user_id}",
}
"""Else nothing but refusals would have been tested."""


@pytest.fixture(scope="module")
def schemathesis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, in an environment of its own."""
    folder = tmp_path_factory.mktemp("schemathesis")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", SCHEMATHESIS]
    if subprocess.run(pip, capture_output=True, timeout=300).returncode:
        pytest.skip("schemathesis cannot be had from the package registry")
    return folder / "bin" / "schemathesis"


@pytest.fixture(scope="module")
def model_engine() -> Iterator[Engine]:
    tokenizer = tiny_tokenizer()
    engine = Engine(tiny_model(tokenizer), tokenizer)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def model(model_engine: Engine) -> Iterator[str]:
    """Address of a model that answers live prompts."""
    with served(create_model_app(model_engine, "rlhf-v2")) as url:
        yield f"{url}/v1"


class Recorder:
    """ASGI: which statuses each route has answered with."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self.statuses: dict[str, set[int]] = defaultdict(set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self.statuses[f"{scope['method']} {route}"].add(message["status"])
            await send(message)

        await self._app(scope, receive, send_noted)

    def server_errors(self) -> list[str]:
        return [route for route, found in self.statuses.items() if any(s >= 500 for s in found)]

    def successes(self) -> set[str]:
        return {route for route, found in self.statuses.items() if any(s < 400 for s in found)}


def attack(program: Path, schema: dict, url: str, folder: Path, *options: str) -> None:
    file = folder / "openapi.json"
    file.write_text(json.dumps(schema))
    command = [program, "run", file, "--url", url, "--checks", "not_a_server_error"]
    command += ["--seed", "1", "--continue-on-failure", "--no-color", *options]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=500)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def schema_for(app: FastAPI, csrf: str, invitations: list[str]) -> dict:
    """The service's own schema, with the session's token, and ids that exist."""
    schema = app.openapi()
    del schema["paths"]["/logout"]  # it would end the session that everything else needs
    for number, form in enumerate(schema["components"]["schemas"].values()):
        fields = form.get("properties", {})
        if "csrf" in fields:
            fields["csrf"] = {"type": "string", "const": csrf}
            form["required"] = [*form.get("required", []), "csrf"]
        if "shown" in fields:
            fields["shown"] = {"type": "string", "enum": SHOWN}
            form["required"] = [*form.get("required", []), "shown"]
        if "submission_id" in fields:
            # else all forms are tried with the same shortest one, and it is used up by the first
            fields["submission_id"]["pattern"] = f"^form{number}-[a-z0-9]{{4,12}}$"
    for operations in schema["paths"].values():
        for operation in operations.values():
            for given in operation.get("parameters", []):
                if given["schema"].get("type") == "integer":
                    given["schema"]["maximum"] = MAX_IDS.get(given["name"], 3)
                if given["name"] == "token":
                    given["schema"]["enum"] = invitations
    fields = schema["components"]["schemas"][ACCOUNT_FORM]["properties"]
    fields["username"]["pattern"] = "^[a-z]{4,9}$"
    fields["password"]["minLength"] = MIN_PASSWORD_LENGTH
    return schema


def hold_everything(database: Database, user: User) -> None:
    """Give one user every item, so that most labels are for an item of theirs."""
    everything = {"state": SlotState.held, "holder_id": user.id, "held_until": START}
    with database.writing() as session:
        session.execute(update(Slot).values(everything))


def test_the_annotation_service_has_no_server_error(schemathesis, database, clock, tmp_path, model):
    rows = comparisons(NUM_ROWS) + comparisons(NUM_ROWS, "safety")
    publish_rows(database, [row | TEXTS for row in rows])
    live = (LiveModel(url=model, model="v2"), LiveModel(url=model, model="v1"))
    service = Service(database, AnnotationSettings(live_models=live, max_new_tokens=8), clock)
    app = create_app(service)
    add_user(database, "ann")
    hold_everything(database, add_user(database, "adm", Role.admin))
    admin = Browser(app, "adm")
    assert admin.log_in().status_code == 303
    with database.writing() as session:
        invitations = [invite(session, Role.annotator, START, None) for _ in range(20)]
    recorder = Recorder(app)
    schema = schema_for(app, admin.csrf, invitations)
    with served(recorder) as url:
        cookie = f"Cookie: {COOKIE}={admin.client.cookies[COOKIE]}"
        attack(schemathesis, schema, url, tmp_path, "-H", cookie, "-n", "40")
    assert recorder.server_errors() == []
    assert recorder.successes() >= MUST_GO_THROUGH


def test_the_model_server_has_no_server_error(schemathesis, tmp_path, model_engine):
    app = create_model_app(model_engine, "rlhf-v2")
    recorder = Recorder(app)
    with served(recorder) as url:
        attack(schemathesis, app.openapi(), url, tmp_path, "-n", "60")
    assert recorder.server_errors() == []
    assert "POST /v1/chat/completions" in recorder.successes()
