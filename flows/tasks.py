"""The Prefect task: one node of the graph. It is thin; what is done, the store knows.

Prefect's result cache is off: it forgets under changed decorators, misses changed helpers, and
believes in files that are gone.
"""

from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, StateType
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.node import Node
from flows.planner import is_named
from flows.runner import NodeResult, Walk, run_node


@task(
    name="stage",
    task_run_name="{label}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=0,  # a stage resumes from its own checkpoints when the same command is run again
)
def stage_task(label: str, node: Node, walk: Walk, force: bool) -> State[NodeResult]:
    """Run one node; Prefect shows it as Completed, or as Cached when it was reused."""
    result = run_node(node, walk, force=force)
    name = "Cached" if result.reused else "Completed"
    return Completed(name=name, message=result.manifest.key[:12], data=result)


def run_task(node: Node, walk: Walk, force: list[str]) -> NodeResult:
    """Call the task here and now, on the main thread: cancellation and timeouts reach it there.

    Raises what the stage raised.
    """
    # No tags: each task with one asks the server for a place under the tag's limit, which takes as
    # long as all the rest of a reused task. The flow run has tags.
    labelled = stage_task.with_options(name=node.id.name)
    # a task that returns a State gives the State, so its result has to be asked for
    state = labelled(node.id.name, node, walk, is_named(node, force), return_state=True)
    result = state.result()
    assert isinstance(result, NodeResult)
    return result


def finished_tasks() -> set[str]:
    """Names of the tasks that this flow run has completed before: some only when it is retried.

    What was to be made again by force has been, and nobody pays for it twice.
    """
    own = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(str(flow_run.id))]))
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=own)
    return {task.name for task in tasks if task.state_type == StateType.COMPLETED}
