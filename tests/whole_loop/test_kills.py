"""kill -9 at any moment of any stage, then the same command: nothing is lost, nothing is believed
that is not whole, and nothing is left running."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from whole_loop_home import (
    PATIENCE_SECONDS,
    TINY,
    believed,
    digests,
    forget,
    mlflow_statuses,
    planned,
    processes_on,
    run_rlhf,
    running_rlhf,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

Process = subprocess.Popen[bytes]


def head(home: Path, node: str) -> Path:
    """The ledger's document of a node: written when the node is done."""
    return home / "iterations" / f"{node}.json"


def await_attempt(home: Path, node: str, process: Process, number: int = 1) -> None:
    """Return once a node's attempt of this number has begun."""
    step = next(step for step in planned(home) if str(step.node.id) == node)
    assert step.key is not None, step.reason
    attempt = home / "work" / step.key / f"attempt-{number}"
    wait_until(attempt.exists, f"{node} to begin", process)


def await_outputs(home: Path, node: str, process: Process) -> None:
    """Return while the stage puts its outputs into the store, or a moment later."""
    objects = set((home / "objects").iterdir())
    wait_until(lambda: set((home / "objects").iterdir()) != objects, f"{node}'s outputs", process)


def kill_in(home: Path, node: str, before: str | None, moment: random.Random, seconds: float):
    """Start the run, and kill it at some moment of this node's work."""
    with running_rlhf("run", "--recipe", TINY, home=home) as process:
        if before is not None:
            wait_until(head(home, before).exists, f"{before} to end", process)
        await_attempt(home, node, process)
        if moment.random() < 1 / 3:
            await_outputs(home, node, process)
        else:
            time.sleep(moment.uniform(0, seconds))
        os.killpg(process.pid, signal.SIGKILL)


def assert_nothing_lost(home: Path, finished: set[str]) -> None:
    """All that a manifest says is there, and nothing that was finished is to run again."""
    believed(home)
    actions = {str(step.node.id): step.action for step in planned(home)}
    assert {name: actions[name] for name in finished} == dict.fromkeys(finished, "reuse")


@pytest.mark.parametrize("version", [0, 1, 2])
def test_killed_in_every_stage(home: Path, tmp_path: Path, version: int):
    """A version from its beginning, the base as 0, killed once in each stage, at a random moment or
    as its outputs go into the store.

    Each start finishes what the one before was killed in and is killed in the next stage. A stage
    that is quicker than its killer is passed over: the machine may be faster now than it was.
    """
    killed = tmp_path / "home"
    if version > 0:
        forget(Path(shutil.copytree(home, killed)), version)
    made = {str(s.node.id): s for s in planned(home) if s.node.id.version <= version}
    before, interrupted = None, []
    for node, step in made.items():
        if step.node.id.version == version and not head(killed, node).exists():
            moment = random.Random(f"kill in {node}")
            kill_in(killed, node, before, moment, step.manifest.seconds)
            assert_nothing_lost(killed, {n for n in made if head(killed, n).exists()})
            interrupted += [] if head(killed, node).exists() else [node]
        before = node
    print("interrupted", interrupted)
    assert interrupted
    run = ("run", "--recipe", TINY, "--versions", str(version))
    out = run_rlhf(*run, home=killed)
    assert out.returncode == 0, out.stderr[-2000:]
    assert digests(killed) == {n: d for n, d in digests(home).items() if n in made}
    assert mlflow_statuses(killed) == {"FINISHED"}


def test_nothing_outlives_a_killed_parent(home: Path, tmp_path: Path):
    """kill -9 of the command alone, while its two ranks train: they end, and so does the server."""
    copy = Path(shutil.copytree(home, tmp_path / "home"))
    arguments = ("run", "--recipe", TINY, "--force", "pretrain", "--num-processes", "2")
    with running_rlhf(*arguments, home=copy) as process:
        await_attempt(copy, "base/pretrain", process, number=2)
        wait_until(lambda: len(processes_on(copy)) >= 5, "server, launcher and ranks", process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_until(lambda: not processes_on(copy), "all of them to end")
    assert_nothing_lost(copy, {str(step.node.id) for step in planned(home)})


def test_a_second_run_beside_a_live_one_is_refused(home: Path, tmp_path: Path):
    copy = Path(shutil.copytree(home, tmp_path / "home"))
    with running_rlhf("run", "--recipe", TINY, "--force", "v2/ppo", home=copy) as process:
        await_attempt(copy, "v2/ppo", process, number=2)
        os.kill(process.pid, signal.SIGSTOP)  # or it might end before the others have begun
        for second in (("run", "--recipe", TINY), ("stage", "sft", "--recipe", TINY)):
            out = run_rlhf(*second, home=copy)
            assert out.returncode == 2, out.stderr
            assert f"held by process {process.pid} " in out.stderr
            assert "Traceback" not in out.stderr
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(PATIENCE_SECONDS) == 0
    assert digests(copy) == digests(home)
