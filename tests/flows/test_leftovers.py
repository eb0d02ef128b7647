"""What a worker that is gone was running goes on; what may be at work elsewhere is left alone."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, State, StateType, Worker, WorkerStatus

from flows.standing.leftovers import MAX_STARTS, put_back


class Api:
    """Pools with their workers and runs, as Prefect's client shows them."""

    def __init__(self, workers: dict[str, list[Worker]], runs: list[FlowRun]) -> None:
        self._workers = workers
        self._runs = runs
        self.states: dict[UUID, State[Any]] = {}

    def read_workers_for_work_pool(self, work_pool_name: str) -> list[Worker]:
        return self._workers[work_pool_name]

    def read_flow_runs(
        self, flow_run_filter: FlowRunFilter, work_pool_filter: WorkPoolFilter
    ) -> list[FlowRun]:
        assert work_pool_filter.name is not None
        assert work_pool_filter.name.any_ is not None
        return [run for run in self._runs if run.work_pool_name in work_pool_filter.name.any_]

    def set_flow_run_state(self, run: UUID, state: State[Any], force: bool) -> None:
        assert force, "the server's rules do not let a run leave Running"
        self.states[run] = state


def worker(name: str, status: WorkerStatus) -> Worker:
    return Worker(name=name, work_pool_id=uuid4(), status=status)


def run(pool: str, state: StateType = StateType.RUNNING, run_count: int = 1) -> FlowRun:
    return FlowRun(flow_id=uuid4(), work_pool_name=pool, state_type=state, run_count=run_count)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (run("rlhf"), "AwaitingRetry"),
        (run("rlhf", StateType.PENDING), "AwaitingRetry"),
        (run("rlhf", StateType.CANCELLING), "Cancelled"),
        (run("rlhf", run_count=MAX_STARTS), "Crashed"),
    ],
)
def test_the_state_from_which_a_run_goes_on_or_ends(held: FlowRun, expected: str):
    api = Api({"rlhf": [worker("rlhf", WorkerStatus.ONLINE)]}, [held])
    assert put_back(api, ["rlhf"]) == [held]  # pyright: ignore[reportArgumentType]
    assert api.states[held.id].name == expected


def test_only_the_runs_that_are_asked_for():
    mine, other = run("rlhf"), run("rlhf")
    api = Api({"rlhf": []}, [mine, other])
    put_back(api, ["rlhf"], {str(mine.id)})  # pyright: ignore[reportArgumentType]
    assert api.states.keys() == {mine.id}


@pytest.mark.parametrize("status", WorkerStatus)
def test_a_stage_that_another_machine_may_be_running_is_left_alone(status: WorkerStatus):
    here, there = run("rlhf"), run("gpu")
    workers = [worker("gpu", WorkerStatus.ONLINE), worker("node-7", status)]
    api = Api({"rlhf": [], "gpu": workers}, [here, there])
    put_back(api, ["rlhf", "gpu"])  # pyright: ignore[reportArgumentType]
    expected = {here.id} if status is WorkerStatus.ONLINE else {here.id, there.id}
    assert api.states.keys() == expected
