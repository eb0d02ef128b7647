"""MLflow away for a whole stage, the machine without power, the disk full."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median

from drill.disk import filled
from drill.house import House
from drill.row import Row, require
from drill.training import Training

_ROUNDS = 3
"""Of four trainings each: chance alone makes one of 8 s up to 5 % faster or slower than another."""
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
    for _ in range(_ROUNDS):  # in an order in which a drift of the machine's pace meets both alike
        without.append(_seconds_of_a_step_without(house))
        beside += [_seconds_of_a_step(house), _seconds_of_a_step(house)]
        without.append(_seconds_of_a_step_without(house))
    out = house.rlhf("run")
    require(out.returncode == 0, out.stderr)
    with_it, away = median(beside), median(without)
    slower = away / with_it - 1
    figures = f"{slower:+.1%} ({with_it * 1e3:.2f} and {away * 1e3:.2f} ms a step)"
    require(slower <= _MOST_SLOWER, figures)
    return figures


def _seconds_of_a_step_without(house: House) -> float:
    _forget_pretraining(house)  # everything must come from the run that is made without it
    with without_mlflow(house):
        seconds = _seconds_of_a_step(house)
    house.wait_until(lambda: house.programs() == house.standing, "MLflow to be back")
    return seconds


def _forget_pretraining(house: House) -> None:
    for run in house.mlflow.runs("drill"):
        if run["name"] == "pretrain":
            house.mlflow.forget(run["id"])


def _seconds_of_a_step(house: House) -> float:
    training = Training(house)
    house.prefect.completed(training.run)
    return median(b - a for a, b in pairwise(sorted(training.times())))


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
