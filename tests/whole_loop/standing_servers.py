"""Servers as an operator starts them, on loopback, with the locked dependencies, for one test."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whole_loop_home import environment_of, wait_until

BIN = Path(sys.executable).parent
HOST = "127.0.0.1"


@dataclass
class Server:
    """A server's address, and the process group that it is."""

    url: str
    process: subprocess.Popen[bytes]
    secret: str = ""
    """name:password, where the server asks for one."""

    def get(self, path: str) -> Any:
        """The answer to a GET, from JSON if it is JSON."""
        basic = base64.b64encode(self.secret.encode()).decode()
        headers = {"Authorization": f"Basic {basic}"} if self.secret else {}
        request = urllib.request.Request(f"{self.url}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read().decode()
            return json.loads(content) if "json" in answer.headers["Content-Type"] else content

    def post(self, path: str, **body: Any) -> Any:
        """The answer to a POST of JSON."""
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def end(self, signal_number: int) -> None:
        """End the whole group; returns once nothing of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal_number)
        self.process.wait(60)
        wait_until(lambda: not self._is_left(), "the server's processes to end")

    def _is_left(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


@contextlib.contextmanager
def prefect_server(folder: Path, secret: str = "") -> Iterator[Server]:
    """`prefect server start` with its page told where the API is, as deploy/ has it; with a secret
    also as guarded as there."""
    port = free_port()
    command = ["prefect", "server", "start", "--host", HOST, "--port", str(port)]
    settings = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    if secret:
        settings["PREFECT_SERVER_API_AUTH_STRING"] = secret
        settings["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] = "true"
    with _serving(command, folder, port, "/api/health", settings) as server:
        server.secret = secret
        yield server


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    """`mlflow server` on a database in a folder, which may hold one already."""
    port = free_port()
    command = [
        *("mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _serving(command, folder, port, "/health", settings) as server:
        yield server


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _serving(
    command: list[str], folder: Path, port: int, health: str, settings: dict[str, str]
) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env=environment_of(folder, PATH=f"{BIN}:{os.environ['PATH']}", **settings),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(f"http://{HOST}:{port}", process)
    try:
        wait_until(lambda: _answers(f"{server.url}{health}"), f"what {log} is about", process)
        yield server
    finally:
        server.end(signal.SIGTERM)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
