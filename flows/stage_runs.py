"""A stage as a run of its own on another work pool, and the run of an iteration that waits for it.

The iteration's run keeps everything but the stage's body: it resolves the inputs, shows progress,
feeds MLflow from the stage's work folder and moves the ledger's head. What runs on the pool finds
its configuration in the work folder, which both see. When the waiting run is killed, the stage goes
on; a retry of it finds the stage's run again by its key.
"""

import itertools
import logging
import time
from pathlib import Path
from typing import Any

from httpx import HTTPStatusError, TransportError
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling, Completed, Failed

from data_contracts.base import Contract, StageConfig
from data_contracts.durable import write_durably
from data_contracts.errors import UserError
from data_contracts.keys import stage_key
from data_contracts.store import Store
from flows.environment import places, prepare
from flows.node import Node
from flows.runner import Walk, run_here
from stages.runtime import stopping
from stages.runtime.launcher import Launch
from stages.runtime.stage import StageResult, run_stage, stage_module
from stages.runtime.stopping import Stopped

LOG = logging.getLogger(__name__)
DEPLOYMENT = "run-stage"
MAX_STARTS = 3
"""Runs of one stage that may crash before its iteration fails: a machine that went away."""
STOPPED = "Stopped"
_REQUEST_FILE = "request.json"
_POLL_SECONDS = 2.0


class Request(Contract):
    """What a stage's run is asked for, in the stage's work folder."""

    stage: str
    config: dict[str, Any]
    launch: Launch


@flow(name=DEPLOYMENT, flow_run_name="rlhf-v{iteration}-{node}", persist_result=False)
def run_on_pool(iteration: int, node: str, key: str, force: bool, home: str) -> State[None]:
    """Run the stage that an iteration has asked for; it is started by the iteration alone.

    Args:
        iteration: n of RLHF-Vn; 0 for the base.
        node: the stage at its place, for people to read.
        key: its stage key.
        force: make it again although it is there.
        home: folder of the store, the same for all pools.
    """
    where = places(home)
    prepare(where)
    store = Store.open(where.home)
    try:
        result = _run(store, key, force)
    except Stopped as error:
        return Failed(name=STOPPED, message=str(error))
    except UserError as error:  # the whole of it is for people, and a traceback is not
        return Failed(message=str(error))
    return Completed(message=result.manifest.key)


def _run(store: Store, key: str, force: bool) -> StageResult:
    file = store.work_folder(key) / _REQUEST_FILE
    try:
        request = Request.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read on this worker: {error}",
            "RLHF_HOME has to be one shared folder for all pools, and the package the same version",
        ) from error
    module = stage_module(request.stage)
    config = module.Config.model_validate(request.config)
    if stage_key(request.stage, module.VERSION, config) != key:
        raise UserError(
            f"{request.stage} has another key on this worker than where its iteration runs",
            "Install the same version of the package on all pools",
        )
    return run_stage(request.stage, config, store, force=force, launch=request.launch)


def on_pools(node: Node, config: StageConfig, walk: Walk, force: bool) -> StageResult:
    """Run a stage on the pool that the recipe names for it, or else here; see runner.Execute.

    Raises:
        UserError: what the stage's run says, when it failed, or was cancelled.
        Stopped: it was asked to.
    """
    pool = walk.recipe.launch.pools.get(node.stage)
    if pool is None:
        return run_here(node, config, walk, force)
    if "://" in walk.store.home:
        raise UserError(
            f"{node.id} cannot run on pool {pool}: the work folder of {walk.store.home} is on this "
            "machine alone",
            "Put RLHF_HOME on a folder that all workers share, or leave out launch.pools",
        )
    key = stage_key(node.stage, stage_module(node.stage).VERSION, config)
    launch = walk.recipe.launch.of(node.stage)
    request = Request(stage=node.stage, config=config.model_dump(mode="json"), launch=launch)
    write_durably(walk.store.work(key) / _REQUEST_FILE, request.model_dump_json().encode())
    with get_client(sync_client=True) as client:
        return _attempts(_Call(client, node, key, pool, force), walk)


class _Call:
    """One stage that is to run on a pool."""

    def __init__(
        self, client: SyncPrefectClient, node: Node, key: str, pool: str, force: bool
    ) -> None:
        self.client = client
        self.node = node
        self.key = key
        self.pool = pool
        self.force = force

    def run(self, number: int) -> FlowRun:
        """The stage's run of this number: the same one however often this is asked."""
        # by force it is made again for this flow run, and once for all retries of it
        nonce = str(flow_run.id) if self.force else "once"
        parameters = {
            "iteration": self.node.id.version,
            "node": self.node.id.name,
            "key": self.key,
            "force": self.force,
        }
        try:
            run = run_deployment(
                f"{DEPLOYMENT}/{self.pool}",
                parameters=parameters,
                timeout=0,
                idempotency_key=f"{self.node.id}:{self.key}:{nonce}:{number}",
            )
        except ObjectNotFound:
            raise UserError(
                f"There is no deployment {DEPLOYMENT}/{self.pool} for {self.node.id}",
                "Register it with `rlhf deploy`, and start a worker of that pool",
            ) from None
        assert isinstance(run, FlowRun)
        return run

    def wait(self, run: FlowRun, scratch: Path) -> FlowRun:
        """The run once it has ended; a server that is away meanwhile is waited for, too.

        Raises Stopped when the home, whose scratch folder says so, is asked to stop before a worker
        has taken the run: at work the stage itself is asked.
        """
        is_away = False
        while run.state is None or not run.state.is_final():
            if stopping.is_asked(scratch) and (run.state is None or run.state.is_scheduled()):
                self.client.set_flow_run_state(run.id, Cancelled(message="Stopped on request"))
                raise stopping.stopped(f"before pool {self.pool} took {self.node.id}")
            time.sleep(_POLL_SECONDS)
            try:
                run = self.client.read_flow_run(run.id)
                is_away = False
            except (TransportError, HTTPStatusError) as error:
                if not is_away:
                    LOG.warning("Waiting for %s: Prefect does not answer: %s", run.name, error)
                is_away = True
        return run

    def cancel_with_us(self, run: FlowRun) -> None:
        """Cancel the stage if it is we who are cancelled, and not only our process that ends."""
        own = self.client.read_flow_run(flow_run.id)
        if own.state_type in (StateType.CANCELLING, StateType.CANCELLED):
            self.client.set_flow_run_state(run.id, Cancelling())


def _attempts(call: _Call, walk: Walk) -> StageResult:
    starts = 0
    for number in itertools.count():
        run = call.run(number)
        if run.state is not None and run.state.is_final():
            if run.state.is_completed() and (found := _result(call, walk)):
                return found
            continue  # of an earlier run of this iteration, which failed then
        starts += 1
        try:
            run = call.wait(run, walk.store.scratch)
        except BaseException:
            call.cancel_with_us(run)
            raise
        assert run.state is not None
        if run.state.is_completed() and (found := _result(call, walk)):
            return found
        if not run.state.is_crashed() or starts == MAX_STARTS:
            raise _failure(call, run, run.state)
        LOG.warning("%s crashed on pool %s; another run follows", call.node.id, call.pool)
    raise AssertionError("counting does not end")


def _result(call: _Call, walk: Walk) -> StageResult | None:
    manifest = walk.store.manifest(call.key)
    return None if manifest is None else StageResult(manifest, reused=False)


def _failure(call: _Call, run: FlowRun, state: State[Any]) -> UserError:
    kind = Stopped if state.name == STOPPED else UserError
    said = state.message or f"it ended as {state.name}"
    return kind(
        f"{call.node.id} on pool {call.pool}: {said}",
        f"Its run is {run.name} ({run.id}); then start this one again",
    )
