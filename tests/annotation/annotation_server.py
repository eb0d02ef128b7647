"""The real server as a process of its own, to be killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx

_CODE = """
import sys
from annotation.settings import AnnotationSettings
from annotation.storage.database import open_database
from annotation.web.app import create_app
from annotation.web.serving import listen, serve
from annotation.web.visitors import Service
with listen("127.0.0.1", int(sys.argv[2])) as listener:
    serve(lambda: create_app(Service(open_database(sys.argv[1]), AnnotationSettings())), listener)
"""


class Server:
    """One address on which the service runs, dies and runs again."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, self._database_url, str(self.port)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                # the answer may be of a page that serves until this one does
                if (
                    children_of(self._process.pid)
                    and httpx.get(f"{self.url}/healthz", trust_env=False).status_code == 200
                ):
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError("the server does not start")

    def serving_process(self) -> int:
        """The process that serves now, forked by the one that listens."""
        assert self._process is not None
        (child,) = children_of(self._process.pid)
        return child

    def kill_serving(self) -> None:
        """kill -9 of the process that serves: nobody has to start the next one."""
        os.kill(self.serving_process(), signal.SIGKILL)

    def ask_to_end(self) -> None:
        """SIGTERM, as a service manager sends it."""
        assert self._process is not None
        self._process.terminate()

    def wait_for_end(self, seconds: float) -> None:
        """Raises TimeoutExpired."""
        assert self._process is not None
        self._process.wait(seconds)
        self._process = None

    def kill_listening(self) -> None:
        """kill -9 of the process that listens: the other one goes on for a while."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def kill(self) -> None:
        """kill -9 of all of it."""
        if self._process is not None:
            serving = children_of(self._process.pid)
            self.kill_listening()  # first: it would fork the next
            for pid in serving:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
