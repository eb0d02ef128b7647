"""MLflow's server is killed and comes back: training goes on, and no metric is lost or doubled."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.graph import nodes
from flows.planner import plan
from flows.recipe import load_recipe
from flows.runner import Walk, run_node
from flows.tracking import outage
from flows.tracking.entities import BATCH, batches
from stages.runtime.workdir import METRICS_FILE

NewWalk = Callable[..., Walk]


class Server:
    """`mlflow server` on one port and one database, which it finds again after a kill."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        folder.mkdir()

    def start(self) -> None:
        command = [
            *(str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert time.monotonic() < deadline, (self.folder / "log.txt").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(tmp_path / "server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(outage, "PAUSE_SECONDS", 0.0)
    server.start()
    yield server
    server.kill()


def metrics_of(walk: Walk) -> dict[str, list[tuple[int, float]]]:
    """The history of train/loss by run; each run's name once."""
    client = walk.tracker._client
    experiment = client.get_experiment_by_name("sandbox")
    assert experiment is not None
    found: dict[str, list[tuple[int, float]]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        name = f"{run.data.tags.get('rlhf.version', '')}/{run.info.run_name}"
        assert name not in found
        history = client.get_metric_history(run.info.run_id, "train/loss")
        found[name] = [(m.step, m.value) for m in history]
    return found


@pytest.mark.slow
def test_down_for_whole_stages_then_back(new_walk: NewWalk, server: Server) -> None:
    walk = new_walk(load_recipe("demo", ["num_versions=1"]), tracked=True)
    warnings: list[str] = []
    walk.tracker.warn = warnings.append
    todo = nodes(walk.recipe)
    with walk.tracker:
        for node in todo[:2]:
            run_node(node, walk)
        server.kill()
        started = time.monotonic()
        for node in todo[2:6]:
            run_node(node, walk)
        print(f"four stages without a server: {time.monotonic() - started:.1f} s")
        server.start()
        for node in todo[6:]:
            run_node(node, walk)
    assert [w.split(" (")[0].rpartition(server.url)[2].strip() for w in warnings] == [
        "is not taking records",
        "takes records again",
    ]
    found = metrics_of(walk)
    assert len(found) == len(todo) + 2
    children = {name: rows for name, rows in found.items() if not name.startswith("/")}
    assert set(map(tuple, children.values())) == {((0, 3.0), (1, 2.0), (2, 1.0))}
    client = walk.tracker._client
    experiment = client.get_experiment_by_name("sandbox")
    assert experiment is not None
    statuses = {r.info.status for r in client.search_runs([experiment.experiment_id])}
    assert statuses == {"FINISHED"}


def steps_with(first: int, last: int, at: float) -> str:
    """Lines of a spool: three metrics a step, the loss a function of the step."""
    rows = [
        {"step": i, "time": at + i, "train/loss": 1 / (i + 1), "a": i, "b": -i}
        for i in range(first, last)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.slow
def test_killed_while_metrics_are_sent_and_the_stage_resumed(
    new_walk: NewWalk, server: Server
) -> None:
    """The server dies between batches; then the stage is killed, and makes some steps again."""
    recipe = load_recipe("demo", ["num_versions=0"])
    walk = new_walk(recipe, tracked=True)
    walk.tracker.warn = lambda message: None
    first = nodes(recipe)[0]
    (step, *_) = plan(recipe, walk.store, walk.ledger)
    assert step.key is not None
    assert step.config is not None
    run = walk.tracker.begin(first, step.key, step.config)
    spool = walk.store.new_attempt(step.key) / METRICS_FILE
    spool.write_text(steps_with(0, 3000, at=1e9))

    send = walk.tracker._client.log_batch
    sent = 0

    def send_two_batches(*arguments: Any, **named: Any) -> None:
        nonlocal sent
        if sent == 2:
            server.kill()
        sent += 1
        send(*arguments, **named)

    walk.tracker._client.log_batch = send_two_batches
    run.flush()
    assert walk.tracker.broken
    server.start()

    resumed = new_walk(recipe, tracked=True)  # another process: what was sent, MLflow knows
    again = walk.store.new_attempt(step.key) / METRICS_FILE
    again.write_text(steps_with(500, 4000, at=2e9))  # from a checkpoint before what was sent
    resumed.tracker.begin(first, step.key, step.config).flush()
    (history,) = [rows for name, rows in metrics_of(resumed).items() if name[0] != "/"]
    assert history == [(i, pytest.approx(1 / (i + 1))) for i in range(4000)]


def test_batches_hold_whole_steps_and_tell_where_to_go_on() -> None:
    steps = [(i, [f"{i}.{k}" for k in range(400)]) for i in range(5)] + [(5, []), (6, ["last"])]
    found = list(batches(steps))
    assert [len(b.metrics) for b in found] == [800, 800, 401]
    assert [b.next_step for b in found] == [2, 4, 7]
    assert [m for b in found for m in b.metrics] == [m for _, own in steps for m in own]
    assert max(len(b.metrics) for b in found) <= BATCH
    assert list(batches([])) == []
