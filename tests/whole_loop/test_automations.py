"""Trouble of every kind reaches a webhook, and a run without a process does not stay Running."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import troubled_flow
from standing_servers import HOST, Server, prefect_server
from whole_loop_home import PATIENCE_SECONDS, environment_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]


class Receiver(HTTPServer):
    """What a chat's webhook is: keeps every text that is posted to it."""

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Handler)
        self.texts: list[str] = []

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/hook/of-the-team"

    def has(self, *words: str) -> bool:
        return any(all(word in text for word in words) for text in self.texts)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        assert self.headers["Content-Type"] == "application/json"
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.texts.append(json.loads(content)["text"])
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Server]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as prefect:
        out = troubled(prefect, "automations", receiver.url, "10")
        names = ["crashed", "failed", "gate", "heartbeat", "late", "stalled"]
        assert out.stdout.split("\n")[:-1] == [f"rlhf {name}" for name in names]
        yield prefect


def troubled(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments),
        env=_environment(server),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def _command(*arguments: str) -> list[str]:
    return [sys.executable, troubled_flow.__file__, *arguments]


def _environment(server: Server) -> dict[str, str]:
    home = Path(troubled_flow.__file__).parent
    return environment_of(home, PYTHONPATH=str(ROOT)) | {
        "PREFECT_API_URL": f"{server.url}/api",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "RLHF_HOME": str(ROOT / "no-such-home"),
    }


def test_a_failure_is_told_with_its_reason(server: Server, receiver: Receiver):
    assert troubled(server, "failing").returncode == 1
    wait_until(lambda: receiver.has("doomed Failed"), "the message of a failure", pause=0.3)
    assert receiver.has("doomed Failed", 'a reason with "quotes" and ümlauts')


def test_a_stage_that_stands_still_and_a_gate_are_told(
    server: Server, receiver: Receiver, tmp_path: Path
):
    environment = _environment(server) | {"RLHF_HOME": str(tmp_path)}
    out = subprocess.run(
        _command("stalling"), env=environment, capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr
    wait_until(
        lambda: receiver.has("v7/ppo has stood at its beginning"), "a stage's silence", pause=0.3
    )
    assert sum("v7/ppo has stood" in text for text in receiver.texts) == 1, "once is enough"
    wait_until(lambda: receiver.has("v7 did not pass"), "a gate", pause=0.3)
    assert receiver.has("policy: is better (0.400, limit 0.500)")


def test_a_run_that_nobody_takes_is_told(server: Server, receiver: Receiver):
    flow_id = server.post("/api/flows/", name="waiting")["id"]
    server.post(
        "/api/flow_runs/",
        flow_id=flow_id,
        name="forgotten",
        state={"type": "SCHEDULED", "state_details": {"scheduled_time": "2026-01-01T00:00:00Z"}},
    )
    wait_until(lambda: receiver.has("forgotten is late"), "the message of a late run", pause=0.3)


def test_a_run_whose_process_is_gone_is_crashed_and_told(server: Server, receiver: Receiver):
    process = subprocess.Popen(
        _command("silent"), env=_environment(server), stderr=subprocess.DEVNULL
    )
    with contextlib.ExitStack() as stack:
        stack.callback(process.wait, PATIENCE_SECONDS)
        stack.callback(process.kill)
        wait_until(lambda: _has_beaten(server, "silent"), "a heartbeat", process, 0.3)
    assert _state(server, "silent") == "RUNNING"
    wait_until(
        lambda: _state(server, "silent") == "CRASHED", "three heartbeats to be missed", pause=0.3
    )
    wait_until(
        lambda: receiver.has("silent Crashed", "has been silent for 0:01:30"),
        "its message",
        pause=0.3,
    )


def test_without_a_webhook_nobody_is_told_any_more(server: Server):
    out = troubled(server, "automations", "", "10")
    assert out.stdout.split() == ["rlhf", "heartbeat"]
    left = server.post("/api/automations/filter")
    assert [automation["name"] for automation in left] == ["rlhf heartbeat"]


def _has_beaten(server: Server, name: str) -> bool:
    """Whether the run of this name, and not another one, has sent a heartbeat."""
    event = {"event": {"name": ["prefect.flow-run.heartbeat"]}}
    events = server.post("/api/events/filter", filter=event)["events"]
    return name in {event["resource"].get("prefect.resource.name") for event in events}


def _state(server: Server, name: str) -> str:
    runs = server.post("/api/flow_runs/filter", flow_runs={"name": {"any_": [name]}})
    return runs[0]["state_type"]
