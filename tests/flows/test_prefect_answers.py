"""What a user is told whose PREFECT_API_URL names a server that refuses, or that is no Prefect."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import prefect
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from data_contracts.errors import UserError
from flows.cli import app
from flows.environment import places
from flows.server import server_errors_explained


@contextmanager
def server_that_answers(status: int, body: str) -> Iterator[str]:
    """Base URL of a server that has the same for every question."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Not into the test's output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def deploying(url: str, home: Path) -> str:
    """What `rlhf deploy` says to a user with this PREFECT_API_URL."""
    with temporary_settings({PREFECT_API_URL: url}):
        result = CliRunner().invoke(
            app,
            ["deploy", "--recipe", "demo", "--home", str(home)],
            env={"COLUMNS": "200", "PREFECT_API_URL": url},
        )
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize("status", [401, 403])
def test_a_missing_secret_is_asked_for(status: int, tmp_path: Path):
    with server_that_answers(status, "{}") as server:
        told = deploying(f"{server}/api", tmp_path)
        assert f"The Prefect server at {server}/api asks for a name and a password" in told
        assert "Set PREFECT_API_AUTH_STRING to the name:password" in told


@pytest.mark.parametrize(
    ("status", "body", "answer"),
    [(404, "", "404"), (500, "", "500"), (200, "<html>", "something else")],
)
def test_another_server_is_no_prefect(status: int, body: str, answer: str, tmp_path: Path):
    with server_that_answers(status, body) as server:
        told = deploying(f"{server}/api", tmp_path)
        assert f"There is no Prefect API at {server}/api: it answered {answer}" in told
        assert "Set PREFECT_API_URL to" in told


def test_an_old_server_is_another_prefect(tmp_path: Path):
    with server_that_answers(200, '"2.20.1"') as server:
        told = deploying(f"{server}/api", tmp_path)
    assert f"The Prefect server at {server}/api is another Prefect" in told
    assert "server: 2.20.1" in told


def test_no_server_at_all(tmp_path: Path):
    with server_that_answers(200, "") as gone:
        pass
    assert f"The Prefect server at {gone}/api does not answer" in deploying(f"{gone}/api", tmp_path)


def asked(server: str, status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", f"{server}/api/flow_runs/")
    message = f"Server error '{status}' for url '{request.url}'"
    return httpx.HTTPStatusError(message, request=request, response=httpx.Response(status))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The user's server, which is Prefect of this version."""
    with server_that_answers(200, json.dumps(prefect.__version__)) as server:
        monkeypatch.setenv("PREFECT_API_URL", f"{server}/api")
        with temporary_settings({PREFECT_API_URL: f"{server}/api"}):
            yield f"{server}/api"


@pytest.mark.parametrize(
    ("status", "words"),
    [(500, "fails: Server error '500' .* Look into its log"), (401, "asks for a name")],
)
def test_a_server_that_fails_in_the_middle(status: int, words: str, api: str, tmp_path: Path):
    with (
        pytest.raises(UserError, match=f"The Prefect server at {api} {words}"),
        server_errors_explained(places(str(tmp_path))),
    ):
        raise asked(api.removesuffix("/api"), status)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        NotImplementedError(),
        asked("http://judge.example", 401),
    ],
    ids=["RuntimeError", "NotImplementedError", "another server"],
)
@pytest.mark.usefixtures("api")
def test_what_the_flows_own_code_raises_stays(error: Exception, tmp_path: Path):
    with pytest.raises(type(error)) as caught, server_errors_explained(places(str(tmp_path))):
        raise error
    assert caught.value is error
