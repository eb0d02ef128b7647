"""`rlhf up` on a home, as a browser reaches it."""

import base64
import json
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from standing_servers import free_port
from whole_loop_home import PATIENCE_SECONDS, processes_on

SECRET = "admin:secret1"


class Up:
    """The servers of a home, reached as a browser does: with the secret and a CSRF token."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ports = [free_port() for _ in range(3)]
        self.api = f"http://127.0.0.1:{self.ports[0]}/api"

    @property
    def arguments(self) -> list[str]:
        names = ("--prefect-port", "--mlflow-port", "--annotation-port")
        return [word for pair in zip(names, map(str, self.ports), strict=True) for word in pair]

    def is_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether this `rlhf up` says so: one that was killed has left its file."""
        file = self.home / "servers.json"
        state = json.loads(file.read_text()) if file.is_file() else {"ready": False}
        return state["ready"] and state["pid"] == process.pid

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {
            "Authorization": f"Basic {base64.b64encode(SECRET.encode()).decode()}",
            "Content-Type": "application/json",
        }
        if body is not None:
            client = str(uuid.uuid4())
            token = self.call(f"/csrf-token?client={client}")["token"]
            headers |= {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client}
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.api + path, content, headers)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                # SQLite is busy, and the server asks to try again, as Prefect's own client does
                if error.code != 503 or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def post(self, path: str, body: dict[str, Any]) -> int:
        """Status of the answer, whatever it is."""
        try:
            self.call(path, body)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def runs(self, **filters: Any) -> list[dict[str, Any]]:
        """Flow runs, the newest last; filters as Prefect's API has them."""
        return self.call("/flow_runs/filter", {"sort": "START_TIME_ASC", **filters})

    def start(self, deployment: str, **parameters: Any) -> str:
        """What the page's Run button sends; returns the flow run's id."""
        found = self.call(f"/deployments/name/{deployment}")
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.call(f"/deployments/{found['id']}/create_flow_run", body)["id"]

    def ended(self, run: str) -> dict[str, Any]:
        """A flow run once it has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = self.call(f"/flow_runs/{run}")
            if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.5)

    def tasks(self, run: str) -> list[str]:
        """Names of a flow run's tasks in the order in which they began."""
        found = self.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return [task["name"] for task in sorted(found, key=lambda task: task["start_time"])]


def processes(home: Path, words: str) -> list[int]:
    """Processes of a home whose command line has these words, their keepers left out."""
    found = []
    for pid in processes_on(home):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if words in command and "keeper" not in command and "launcher" not in command:
            found.append(pid)
    return found
