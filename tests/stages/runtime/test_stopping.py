"""A stage that is asked to stop, that crashes and is tried again, that takes too long, that wants
a GPU which another has. What is resumed is bit by bit what would have been."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from runtime_toys.counting import Config

from data_contracts.artifacts import hash_file
from data_contracts.errors import UserError
from data_contracts.keys import stage_key
from data_contracts.store import Store
from stages.runtime import launched, stopping
from stages.runtime.attempts import StageFailed
from stages.runtime.checkpoints import checkpoint_folders, fault_of_checkpoint
from stages.runtime.gpus import LOCKS_VARIABLE, reserved
from stages.runtime.launcher import Launch
from stages.runtime.stage import run_stage
from stages.runtime.stopping import Stopped
from stages.runtime.supervisor import processes_in

STAGE = "runtime_toys.counting"
TWO = Launch(num_processes=2, num_threads=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "home")


def work_of(store: Store, config: Config) -> Path:
    return store.work_folder(stage_key(STAGE, "1", config))


def ask_at_step(store: Store, config: Config, step: int) -> threading.Thread:
    """Ask from another thread, once the attempt has written metrics of so many steps."""

    def ask() -> None:
        spool = work_of(store, config) / "attempt-1" / "metrics.jsonl"
        while not (spool.exists() and spool.read_text().count("\n") >= step):
            time.sleep(0.01)
        stopping.ask(work_of(store, config))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_a_stage_here_stops_with_a_checkpoint_and_resumes_bitwise(
    store: Store, tmp_path: Path
) -> None:
    whole = run_stage(STAGE, Config(), Store.open(tmp_path / "other")).manifest
    slow = Config(pause=0.1)
    thread = ask_at_step(store, slow, step=2)
    with pytest.raises(Stopped, match=r"Stopped on request, with a checkpoint after step \d"):
        run_stage(STAGE, slow, store)
    thread.join()
    (*_, newest) = checkpoint_folders(work_of(store, slow) / "checkpoints")
    assert not fault_of_checkpoint(newest)
    assert not stopping.can_stop(work_of(store, slow))
    resumed = run_stage(STAGE, Config(), store).manifest
    assert resumed.metrics["resumed"] == int(newest.name.removeprefix("step-")) > 0
    assert resumed.metrics["noise"] == whole.metrics["noise"]
    assert resumed.outputs == whole.outputs


def test_a_request_is_for_one_attempt_only(store: Store) -> None:
    config = Config()
    store.work(stage_key(STAGE, "1", config))
    stopping.ask(work_of(store, config))
    assert not run_stage(STAGE, config, store).reused


def test_a_stage_without_checkpoints_ends_at_its_next_sign_of_life(store: Store) -> None:
    config = Config(num_signs=200)
    stopper = threading.Thread(target=lambda: ask_when_there(work_of(store, config)))
    stopper.start()
    with pytest.raises(Stopped, match=r"Stopped on request, at sign \d+ of 200"):
        run_stage(STAGE, config, store)
    stopper.join()


def ask_when_there(work: Path) -> None:
    while not (work / "attempt-1" / "progress.json").exists():
        time.sleep(0.01)
    stopping.ask(work)


class Swallows:
    """As DeepSpeed's engine does when it is deleted."""

    def __del__(self) -> None:
        with contextlib.suppress(StageFailed):
            time.sleep(1)


def test_a_limit_that_is_swallowed_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launched, "_UNTIL_HEARD_SECONDS", 0.1)

    def work() -> None:
        with launched.time_limit("toy", Launch(timeout_seconds=0.1)):
            Swallows()
            time.sleep(10)

    with pytest.raises(StageFailed, match="after its limit"):
        work()


def test_a_stage_here_ends_after_its_limit(store: Store) -> None:
    with pytest.raises(StageFailed, match=r"at work after its limit of 0\.5 s.*timeout_minutes"):
        run_stage(STAGE, Config(pause=0.3), store, launch=Launch(timeout_seconds=0.5))


@pytest.mark.slow
def test_a_launched_stage_stops_with_a_checkpoint_and_resumes_bitwise(
    store: Store, findings: dict[str, Any]
) -> None:
    config = Config(zero_stage=2, seed=4, pause=1.0)
    thread = ask_at_step(store, config, step=3)
    with pytest.raises(Stopped, match="with a checkpoint after step"):
        run_stage(STAGE, config, store, launch=Launch(2, num_threads=1, max_retries=2))
    thread.join()
    assert not processes_in(work_of(store, config))
    resumed = run_stage(STAGE, Config(zero_stage=2, seed=4), store, launch=TWO).manifest
    assert (resumed.metrics["resumed"] >= 3, resumed.attempt) == (True, 2)
    weights = store.local(resumed.outputs["model"]) / "weights.bin"
    assert hash_file(weights) == findings["digest"]  # of ranks that trained without a break


PARENT = """
import sys
from runtime_toys.counting import Config
from data_contracts.store import Store
from stages.runtime.launcher import Launch
from stages.runtime.stage import run_stage
config = Config(zero_stage=2, seed=4, pause=1.0)
run_stage("runtime_toys.counting", config, Store.open(sys.argv[1]), launch=Launch(2, num_threads=1))
"""


@pytest.mark.slow
def test_kill_9_of_the_parent_saves_a_step_and_the_next_run_goes_on_from_it(
    store: Store, findings: dict[str, Any]
) -> None:
    config = Config(zero_stage=2, seed=4)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, store.home], env=environment)
    spool = work_of(store, config) / "attempt-1" / "metrics.jsonl"
    while not (spool.exists() and spool.read_text().count("\n") >= 3):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    resumed = run_stage(STAGE, config, store, launch=TWO).manifest
    assert resumed.metrics["resumed"] >= 3  # checkpoints are every second step: 3 is not one
    assert not processes_in(work_of(store, config))
    weights = store.local(resumed.outputs["model"]) / "weights.bin"
    assert hash_file(weights) == findings["digest"]


@pytest.mark.slow
def test_a_crash_is_tried_again_from_the_newest_checkpoint(
    store: Store, findings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    once = Config(zero_stage=2, seed=4, failure="kill", fail_at=5, fail_rank=1, num_failures=1)
    retried = run_stage(STAGE, once, store, launch=Launch(2, num_threads=1, max_retries=2))
    assert (retried.manifest.metrics["resumed"], retried.manifest.attempt) == (4, 2)
    weights = store.local(retried.manifest.outputs["model"]) / "weights.bin"
    assert hash_file(weights) == findings["digest"]
    assert "SIGKILL" in caplog.text
    assert "Attempt 2 of at most 3 follows." in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "num_attempts"), [("user", 1), ("bug", 2)], ids=["user-error", "same-crash-twice"]
)
def test_what_trying_again_cannot_mend_is_not_tried_again(
    store: Store, failure: str, num_attempts: int
) -> None:
    config = Config(seed=5, failure=failure, fail_at=0)
    with pytest.raises(UserError):
        run_stage(STAGE, config, store, launch=Launch(2, num_threads=1, max_retries=3))
    assert len(store.attempts(stage_key(STAGE, "1", config))) == num_attempts


@pytest.mark.slow
def test_a_launched_stage_over_its_limit_is_ended_saves_and_goes_on(store: Store) -> None:
    config = Config(seed=6, pause=2.0, num_steps=30)
    limited = Launch(2, num_threads=1, timeout_seconds=25)
    with pytest.raises(StageFailed, match="at work after its limit of 25 s"):
        run_stage(STAGE, config, store, launch=limited)
    assert not processes_in(work_of(store, config))
    assert checkpoint_folders(work_of(store, config) / "checkpoints")


HOLDER = """
import sys, time
from stages.runtime.gpus import reserved
with reserved(sys.argv[1:]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_gpu_is_one_stages_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(LOCKS_VARIABLE, str(tmp_path))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "1", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with reserved(["2", "3"]):  # others are free
            pass
        threading.Timer(1.5, holder.kill).start()
        started = time.monotonic()
        with reserved(["1", "2"]):
            assert time.monotonic() - started > 1
        assert f"Waiting for GPU 1 of this machine, held by process {holder.pid} " in caplog.text
    finally:
        holder.kill()
        holder.communicate()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"gpu-{i}.lock" for i in range(4)]
