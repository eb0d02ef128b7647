"""A stage in several processes: its result, its failures as one paragraph, and no process left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runtime_toys.counting import Config

from data_contracts.artifacts import hash_file
from data_contracts.errors import UserError
from data_contracts.store import Store
from stages.runtime.attempts import StageFailed, abandon_attempt, first_failure
from stages.runtime.launcher import Launch, error_in_log, kill_in_log, launcher_command
from stages.runtime.stage import run_stage

STAGE = "runtime_toys.counting"
TWO = Launch(num_processes=2, num_threads=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("launcher") / "home")


def test_killed_rank_is_named_and_resuming_on_two_ranks_is_bitwise(
    store: Store, findings: dict[str, Any]
) -> None:
    zero_2 = {"zero_stage": 2, "seed": 4}
    killed = Config(failure="kill", fail_at=5, fail_rank=1, **zero_2)
    with pytest.raises(StageFailed, match=r"SIGKILL.*out of memory.*The whole log is .*log\.txt"):
        run_stage(STAGE, killed, store, launch=TWO)
    resumed = run_stage(STAGE, Config(**zero_2), store, launch=TWO).manifest
    assert (resumed.metrics["resumed"], resumed.attempt) == (4, 2)
    assert run_stage(STAGE, Config(**zero_2), store).reused  # by one process: the same key
    weights = store.local(resumed.outputs["model"]) / "weights.bin"
    assert hash_file(weights) == findings["digest"]  # of ranks that trained without a break


def test_user_error_of_a_rank_reaches_the_user_as_it_was(store: Store) -> None:
    config = Config(seed=5, failure="user", fail_at=0, fail_rank=1)
    with pytest.raises(UserError) as raised:
        run_stage(STAGE, config, store, launch=TWO)
    assert str(raised.value) == "The prompts are in Klingon. Translate them."
    attempt = store.attempts(sorted(os.listdir(Path(store.home) / "work"))[0])[-1]
    assert not (attempt / "outputs").exists()


def test_the_first_cause_is_told_before_that_of_ranks_that_waited(tmp_path: Path) -> None:
    assert first_failure(tmp_path) is None
    abandon_attempt(tmp_path, 1, RuntimeError("the shard is empty"))
    abandon_attempt(tmp_path, 0, ConnectionError("connection closed by peer"))
    failure = first_failure(tmp_path)
    assert failure is not None
    assert (failure.rank, failure.problem) == (1, "RuntimeError: the shard is empty")


@pytest.mark.parametrize(
    ("log", "kill", "error"),
    [
        ("rank 1:\n  exitcode  : -9 (pid: 71)\n", "(SIGKILL)", "exitcode"),
        ("exitcode  : -15 (pid: 70)\nexitcode  : -11 (pid: 71)\n", "SIGSEGV", "exitcode"),
        ("exitcode  : -15 (pid: 70)\nexitcode  : 1 (pid: 71)\n", "", "exitcode"),
        ("x\nImportError: no module named y\nmore\n", "", "ImportError: no module named y"),
        ("just a line\n\n", "", "just a line"),
        ("", "", "the log is empty"),
    ],
)
def test_the_cause_of_a_silent_end_is_read_from_the_log(
    tmp_path: Path, log: str, kill: str, error: str
) -> None:
    path = tmp_path / "log.txt"
    path.write_text(log)
    assert kill in kill_in_log(path)
    assert bool(kill) == bool(kill_in_log(path))
    assert error in error_in_log(path)


def test_a_store_in_memory_cannot_be_shared() -> None:
    with pytest.raises(UserError, match="memory://"):
        run_stage(STAGE, Config(), Store.open("memory://here"), launch=TWO)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_no_rank_outlives_the_process_that_started_it(
    tmp_path: Path, signal_number: signal.Signals
) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "runtime_toys.starter", str(tmp_path)]
    starter = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    pids = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    starter.send_signal(signal_number)
    starter.wait(30)
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


def wait_until(condition: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_many_machines_are_left_to_deepspeeds_launcher(tmp_path: Path) -> None:
    launch = Launch(num_processes=8, hostfile=tmp_path / "hosts")
    assert not launch.inline
    with pytest.raises(UserError, match=r"hosts does not exist.*launch\.hostfile"):
        launcher_command("stages.sft", launch)  # DeepSpeed would train on one machine
    (tmp_path / "hosts").write_text("here slots=8\n")
    command = " ".join(launcher_command("stages.sft", launch))
    assert "deepspeed.launcher.runner --hostfile" in command
    assert "--num_gpus 8 --no_local_rank --module stages.sft" in command


def test_json_is_what_a_killed_write_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "error-00000.json").write_text(json.dumps({"rank": 0})[:5])
    assert first_failure(tmp_path) is None
