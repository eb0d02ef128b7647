"""MLflow away for a whole stage, the machine without power, the disk full."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from drill.disk import filled
from drill.house import House
from drill.row import Row, require
from drill.training import Training

_PAIRS = 2
"""Trainings with and without MLflow, in turn: the machine's pace changes between them."""
_MOST_SLOWER = 0.05


@contextmanager
def without_mlflow(house: House) -> Iterator[None]:
    """kill -9 of MLflow's server; `rlhf up`, held meanwhile, starts it again after the block."""
    os.kill(house.up_pid, signal.SIGSTOP)
    try:
        house.kill("mlflow server")
        house.wait_until(lambda: not house.mlflow.answers(), "MLflow to end")
        yield
    finally:
        os.kill(house.up_pid, signal.SIGCONT)


def mlflow_away(house: House) -> str:
    """Steps take what they take with MLflow, and its records are complete afterwards."""
    beside, without = [], []
    for _ in range(_PAIRS):
        beside.append(_seconds_of_a_step(house))
        _forget_pretraining(house)  # everything must come from the run that is made without it
        with without_mlflow(house):
            without.append(_seconds_of_a_step(house))
        house.wait_until(lambda: house.programs() == house.standing, "MLflow to be back")
    out = house.rlhf("run")
    require(out.returncode == 0, out.stderr)
    slower = min(without) / min(beside) - 1
    figures = f"{slower:+.1%} ({min(beside) * 1e3:.2f} and {min(without) * 1e3:.2f} ms a step)"
    require(slower <= _MOST_SLOWER, figures)
    return figures


def _forget_pretraining(house: House) -> None:
    for run in house.mlflow.runs("drill"):
        if run["name"] == "pretrain":
            house.mlflow.forget(run["id"])


def _seconds_of_a_step(house: House) -> float:
    training = Training(house)
    house.prefect.completed(training.run)
    times = sorted(training.times())
    steps = sorted(b - a for a, b in pairwise(times))
    return steps[len(steps) // 4]  # the lower quartile: other programs make some steps slow


def reboot(house: House) -> str:
    """SIGKILL to every process at once, then `rlhf up`: the run goes on."""
    training = Training(house)
    training.await_steps()
    house.kill_everything()
    house.up()
    return training.finish()


def full_disk(house: House) -> str:
    """Full in mid-training, with the servers' databases on it, which cannot even be told how the
    run ended; with room again it goes on by itself, or by Retry when they could."""
    training = Training(house)
    training.await_steps()
    with filled(house.home, leave_bytes=0):
        house.wait_until(lambda: not house.pids("rank"), "training to meet the full disk")
        house.wait_until(lambda: not house.pids("flow run"), "its run to end")
    return training.finish_or_retry()


ROWS = (
    Row("MLflow killed, away for the whole stage", mlflow_away, is_core=True),
    Row("reboot", reboot, is_core=True),
    Row("full disk", full_disk),
)
