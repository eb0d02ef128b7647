"""A flow run that Prefect believes to be at work, and for which no process is."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flows.standing.lost_runs import lost_runs

ASKED: list[tuple[str, dict[str, str], Any]] = []


class Prefect(BaseHTTPRequestHandler):
    """Two runs of a pool are at work, as far as this server knows."""

    def do_GET(self) -> None:
        self._answer({"token": "one"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ASKED.append((self.path, dict(self.headers), body))
        self._answer([{"id": "mine"}, {"id": "nobodys"}])

    def _answer(self, content: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Prefect)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()


def test_a_run_without_a_process_is_lost(api: str):
    worker = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
        env=os.environ | {"PREFECT__FLOW_RUN_ID": "mine"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        assert lost_runs(api, "admin:x", ["rlhf"], [worker.pid, os.getpid()]) == {"nobodys"}
        worker.kill()
    assert lost_runs(api, "admin:x", ["rlhf"], [worker.pid]) == {"mine", "nobodys"}
    path, headers, body = ASKED[0]
    assert path == "/api/flow_runs/filter"
    assert (headers["Authorization"], headers["Prefect-Csrf-Token"]) == (
        "Basic YWRtaW46eA==",
        "one",
    )
    assert body["work_pools"] == {"name": {"any_": ["rlhf"]}}


def test_a_server_that_is_away_is_an_os_error():
    with pytest.raises(OSError, match="refused"):
        lost_runs("http://127.0.0.1:9/api", "", ["rlhf"], [])
