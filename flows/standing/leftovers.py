"""Put back what a worker that is gone was running, so that the next one goes on with it.

    python -m flows.standing.leftovers POOL ... [--runs ID ...]

Prefect would show such a run as Running for ever, and it would hold its pool's only place. Where
nobody but the worker of `rlhf up` serves a pool, what is not finished is nobody's now. It keeps its
id, and so its iteration; the stages it had finished are reused. A pool of stages may have workers
on other machines: as long as one of them is online, what the pool holds may be at work there, and
is left alone.
"""

import argparse
from collections.abc import Collection

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.states import AwaitingRetry, Cancelled, Crashed

MAX_STARTS = 3
"""A run that was started so often and never came to an end is not started again."""
_HELD = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


def put_back(
    client: SyncPrefectClient, pools: list[str], only: Collection[str] = ()
) -> list[FlowRun]:
    """Give every run of these pools that somebody held a state from which it goes on, or ends.

    With `only`, the runs with these ids and no others.
    """
    if not (pools := [pool for pool in pools if _is_ours(client, pool)]):
        return []
    held = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_HELD))
        ),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=pools)),
    )
    runs = [run for run in held if not only or str(run.id) in only]
    for run in runs:
        client.set_flow_run_state(run.id, _next_state(run), force=True)
    return runs


def _is_ours(client: SyncPrefectClient, pool: str) -> bool:
    """Whether no worker is online but that of `rlhf up`, which has the pool's name."""
    workers = client.read_workers_for_work_pool(pool)
    return all(w.name == pool or w.status is WorkerStatus.OFFLINE for w in workers)


def _next_state(run: FlowRun) -> State[None]:
    if run.state_type == StateType.CANCELLING:
        return Cancelled(message="Its worker ended")
    if run.run_count >= MAX_STARTS:
        return Crashed(message=f"Started {run.run_count} times, and its worker ended every time")
    return AwaitingRetry(message="Its worker ended; what is finished is reused")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("pools", nargs="+")
    parser.add_argument("--runs", nargs="+", default=[])
    arguments = parser.parse_args()
    with get_client(sync_client=True) as api:
        for left in put_back(api, arguments.pools, arguments.runs):
            print(f"{left.name}: put back")
