"""Whatever is killed, no rank is left; and ranks that can write a checkpoint first do so."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.runtime.supervisor import end_all, processes_in, wait_for_end

SECONDS = 20.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.02)


def ids(folder: Path, name: str) -> list[int]:
    return [int(path.name.rpartition("-")[2]) for path in folder.glob(f"{name}-*")]


@contextmanager
def crew(folder: Path, behaviour: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A parent, its supervisor's id, and below that a launcher with two ranks at work."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "runtime_toys.parent", str(folder), behaviour]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        supervisor = int(parent.stdout.readline())
        wait_until(lambda: len(ids(folder, "pid")) == 2, "two ranks")
        yield parent, supervisor
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout is not None:
            parent.stdout.close()
        end_all(folder)


def victim_of(who: str, folder: Path, parent: subprocess.Popen[str], supervisor: int) -> int:
    if who == "launcher":
        return ids(folder, "launcher")[0]
    return {"parent": parent.pid, "supervisor": supervisor}[who]


@pytest.mark.parametrize(
    ("who", "number"),
    [
        ("parent", signal.SIGKILL),
        ("parent", signal.SIGTERM),
        ("supervisor", signal.SIGTERM),
        ("launcher", signal.SIGKILL),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_nothing_is_left(tmp_path: Path, who: str, number: signal.Signals) -> None:
    with crew(tmp_path, "idle") as (parent, supervisor):
        assert len(processes_in(tmp_path)) == 4  # supervisor, launcher, two ranks
        os.kill(victim_of(who, tmp_path, parent, supervisor), number)
        wait_until(lambda: not processes_in(tmp_path), "all of them to end")
        parent.wait()
        assert parent.returncode


@pytest.mark.parametrize("who", ["parent", "supervisor"])
def test_ranks_that_train_save_first(tmp_path: Path, who: str) -> None:
    with crew(tmp_path, "trains") as (parent, supervisor):
        number = signal.SIGKILL if who == "parent" else signal.SIGTERM
        os.kill(victim_of(who, tmp_path, parent, supervisor), number)
        wait_until(lambda: not processes_in(tmp_path), "all of them to end")
        assert sorted(ids(tmp_path, "saved")) == sorted(ids(tmp_path, "pid"))


def test_ranks_that_ignore_term_are_killed(tmp_path: Path) -> None:
    with crew(tmp_path, "stubborn") as (parent, _):
        parent.kill()
        wait_until(lambda: not processes_in(tmp_path), "all of them to end")


def test_the_next_attempt_ends_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    with crew(tmp_path, "trains") as (parent, supervisor):
        os.kill(supervisor, signal.SIGKILL)
        parent.wait()
        assert processes_in(tmp_path)  # ranks that nobody waits for
        end_all(tmp_path)
        assert not processes_in(tmp_path)


def test_the_next_attempt_waits_for_a_checkpoint_in_progress(tmp_path: Path) -> None:
    with crew(tmp_path, "trains") as (parent, _):
        parent.kill()
        parent.wait()
        wait_for_end(tmp_path)
        assert len(ids(tmp_path, "saved")) == 2


def test_the_status_is_the_launchers(tmp_path: Path) -> None:
    def status_of(code: str) -> int:
        (tmp_path / "ending.py").write_text(code)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        supervisor = ["stages.runtime.supervisor", str(os.getpid()), str(tmp_path), "ending"]
        return subprocess.call([sys.executable, "-m", *supervisor], env=environment)

    assert status_of("") == 0
    assert status_of("raise SystemExit(7)") == 7
    assert status_of("import os; os.kill(os.getpid(), 9)") == 137
