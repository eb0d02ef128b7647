"""The Prefect flow of one iteration, RLHF-Vn: from sampling pairs to evaluation."""

import logging
from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment, flow_run
from prefect.states import Completed

from data_contracts.artifacts import ArtifactRef
from data_contracts.errors import UserError
from data_contracts.store import Store
from flows.boards import ReportingTerminal, publish_board, publish_gates, publish_overview
from flows.consistency import contradictions
from flows.environment import places, prepare
from flows.gates import Verdict, catch_up, settle
from flows.graph import base_nodes, version_nodes
from flows.label_weeks import delivery_file, publish_comparisons
from flows.node import BASE, Node, version_label
from flows.numbering import next_version, take_number, week_of
from flows.occupied import claim, occupied
from flows.pins import pin, read_pins
from flows.planner import as_far_as_begun, head_manifest, refuse_unknown
from flows.recipe import Recipe, load_recipe, validated
from flows.runner import NodeResult, Walk
from flows.stage_runs import on_pools
from flows.tasks import finished_tasks, run_task

LOG = logging.getLogger(__name__)
SKIPPED = "Skipped"
AWAITING_LABELS = "AwaitingLabels"
ASK = "gate-override/ask"


def _flow_run_name() -> str:
    version = flow_run.parameters.get("version")
    return "rlhf-next" if version is None else f"rlhf-{version_label(version)}"


@flow(name="rlhf-iteration", flow_run_name=_flow_run_name, persist_result=False)
def rlhf_iteration(
    version: int | None,
    recipe: str | dict[str, Any],
    home: str,
    force: list[str] | None = None,
    pinned: dict[str, Any] | None = None,
) -> dict[str, Any] | State[None]:
    """Walk one iteration; version 0 is the base, from raw text to the chat model.

    Args:
        version: n of RLHF-Vn. Without it the first one that is not complete, and none if this
            week's is.
        recipe: a recipe's name, its file, or all of its values.
        home: folder or URL of the store.
        force: nodes to make again although they are there.
        pinned: outputs of earlier versions to read, by "base/sft:model". Without it, what the
            version was begun with, or else the ledger's.

    Returns the pinned outputs with this iteration's added; or the state Skipped, or AwaitingLabels
    when its comparisons are with the annotators. `watch_annotations` goes on from there.
    """
    with occupied(Store.open(home)):  # first: who waits for it reads what there is then
        walk = open_walk(recipe, home, pinned)
        given = dict(walk.outputs)
        with walk.tracker:
            if version is None:
                version, is_due = _take_number(walk)
                if not is_due:
                    message = f"{week_of(datetime.now(UTC))} has its RLHF-V{version}"
                    return Completed(name=SKIPPED, message=message)
            if pinned is None:
                _begin(walk, version, force or [])
                catch_up(walk, version)  # a run of the whole recipe walks them all anyway
            return _walk_version(walk, version, force or [], given)


def _take_number(walk: Walk) -> tuple[int, bool]:
    """The version of this flow run, by whose name it goes from now on, and whether it is due."""
    version, is_due = take_number(walk.store, walk.ledger, str(flow_run.id), datetime.now(UTC))
    if is_due:
        label = version_label(version)
        tags = {*flow_run.tags, f"iteration:{label}"}
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, name=f"rlhf-{label}", tags=tags)
    return version, is_due


def _begin(walk: Walk, version: int, force: list[str]) -> None:
    """An iteration that no run of the whole recipe has begun: the home is for its recipe, which
    goes at least so far, and what is missing of the base is made.

    Raises UserError, and leaves the home's recipe as it is, when the version before has not begun
    or a name in `force` means no node.
    """
    _refuse_to_skip(walk, version)
    recipe = as_far_as_begun(walk.recipe, walk.ledger)
    num_versions = max(version, recipe.num_versions)
    walk.recipe = recipe.model_copy(update={"num_versions": num_versions})
    if found := "; ".join(contradictions(walk.recipe)):
        raise UserError(f"RLHF-V{version} cannot be: {found}", "Correct the deployment's recipe")
    refuse_unknown(walk.recipe, force)
    claim(walk.where, walk.recipe)
    if version != BASE:
        for node in base_nodes(walk.recipe):
            if head_manifest(node.id, walk.store, walk.ledger) is None:
                run_task(node, walk, force)


def _refuse_to_skip(walk: Walk, version: int) -> None:
    """Raise UserError for an iteration whose predecessor, which it goes on from, is not there."""
    before = version - 1
    if before > BASE and before not in walk.ledger.versions():
        raise UserError(
            f"RLHF-V{version} goes on from RLHF-V{before}, which has not begun in "
            f"{walk.where.home}",
            f"The next one is RLHF-V{next_version(walk.ledger)}: leave out the version to run it",
        )


def _walk_version(
    walk: Walk, version: int, force: list[str], given: dict[str, ArtifactRef]
) -> dict[str, Any] | State[None]:
    make = base_nodes(walk.recipe) if version == BASE else version_nodes(walk.recipe, version)
    results: list[NodeResult] = []
    finished = finished_tasks() if force else set()
    walk.outputs = read_pins(walk.store, version) | given
    pin(walk, version)
    try:
        for node in make:
            if message := _awaited(node, walk):
                return Completed(name=AWAITING_LABELS, message=message)
            results.append(run_task(node, walk, [] if node.id.name in finished else force))
        if version != BASE:
            pass_gates(walk, version)
    finally:
        publish_board(version, results)
        publish_overview(walk)
    return {name: ref.model_dump() for name, ref in walk.outputs.items()}


def _awaited(node: Node, walk: Walk) -> str:
    """What a node waits for, once the annotators have been asked for it; or ""."""
    file = delivery_file(walk.recipe, node.id.version) if "delivery" in node.fixed else None
    if file is None or file.is_file():
        return ""
    publish_comparisons(walk, node.id.version, datetime.now(UTC))
    return (
        f"The comparisons of RLHF-V{node.id.version} are on the annotation page, and their labels "
        f"are awaited in {file}: `rlhf annotations export --week {node.id.version} "
        f"--home {walk.where.home}`, or watch-annotations of `rlhf up`, delivers them there"
    )


def pass_gates(walk: Walk, version: int) -> None:
    """Judge a complete iteration, record the verdict, and move the champions that it names."""
    verdict = settle(walk, version)
    publish_gates(verdict)
    if verdict.failed() and deployment.id:
        ask_for_override(verdict)


def ask_for_override(verdict: Verdict) -> None:
    """Let a person decide on the models that did not pass, once for each verdict: see override."""
    try:
        run_deployment(
            ASK,
            parameters={"iteration": verdict.version, "verdict": verdict.digest()},
            timeout=0,
            idempotency_key=f"gates:{verdict.digest()}",
            as_subflow=False,
        )
    except ObjectNotFound:
        LOG.warning("Nobody is asked about the gates: there is no deployment %s", ASK)


def open_walk(
    recipe: str | dict[str, Any] | Recipe, home: str, pinned: dict[str, Any] | None = None
) -> Walk:
    """A walk over a recipe that may come by name, as a file, or as the values of one."""
    typed = as_recipe(recipe)
    where = places(home)
    prepare(where)
    refs = {name: ArtifactRef.model_validate(ref) for name, ref in (pinned or {}).items()}
    terminal = ReportingTerminal(typed.launch.stalled_minutes)
    return Walk(typed, where, refs, terminal, on_pools if deployment.id else None)


def as_recipe(recipe: str | dict[str, Any] | Recipe) -> Recipe:
    """The typed recipe of a flow's parameter."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str):
        return load_recipe(recipe)
    return validated(recipe, str(recipe.get("name", "in the flow's parameters")))
