"""Cancel, and kill -9 of everything that has a part in a stage, in mid-training on two ranks."""

from collections.abc import Callable

from drill.house import House
from drill.row import Row, require
from drill.training import Training


def cancelled(house: House) -> str:
    """The page's Cancel leaves a checkpoint of the last step and no process; Retry goes on."""
    training = Training(house)
    training.await_steps()
    house.prefect.cancel(training.run)
    found = house.prefect.await_state(training.run, "CANCELLED", "FAILED", "CRASHED", "COMPLETED")
    require(found["state_type"] == "CANCELLED", found["state"])
    house.wait_until(lambda: not house.pids("rank") + house.pids("supervisor"), "ranks to end")
    last = training.steps()[-1]
    require(training.checkpoint_step() == last + 1, f"{training.checkpoint_step()} after {last}")
    house.prefect.retry(training.run)
    return training.finish()


def killed(role: str) -> Callable[[House], str]:
    """kill -9 of a part of the stage: the next attempt of the same flow run goes on."""

    def scenario(house: House) -> str:
        training = Training(house)
        training.await_steps()
        house.kill(role)
        return training.finish()

    return scenario


def killed_task(house: House) -> str:
    """kill -9 of the flow run's process: the worker reports it, and Retry goes on."""
    training = Training(house)
    training.await_steps()
    house.kill("flow run")
    found = house.prefect.await_state(training.run, "CRASHED", "FAILED", "COMPLETED")
    require(found["state_type"] == "CRASHED", found["state"])
    house.prefect.retry(training.run)
    return training.finish()


def killed_worker(house: House) -> str:
    """Its runs end with it; `rlhf up` starts another one, which goes on with what was not told."""
    training = Training(house)
    training.await_steps()
    house.kill("worker start --pool rlhf ")
    return training.finish_or_retry()


def killed_prefect(house: House) -> str:
    """Training does not notice; the server is back before the run ends, or soon after."""
    training = Training(house)
    training.await_steps()
    house.kill("prefect server start")
    house.prefect.completed(training.run)
    require(len(training.attempts()) == 1, "the stage was interrupted")
    require(house.digests(0) == training.digests, "another digest")
    return "not interrupted, same digest"


ROWS = (
    Row("cancel in mid-training", cancelled, is_core=True),
    Row("kill -9 of a rank", killed("rank"), is_core=True),
    Row("kill -9 of the launcher", killed("launcher")),
    Row("kill -9 of the supervisor", killed("supervisor")),
    Row("kill -9 of the task", killed_task, is_core=True),
    Row("kill -9 of the worker", killed_worker, is_core=True),
    Row("kill -9 of the Prefect server", killed_prefect, is_core=True),
)
