"""The Prefect flow of one iteration, RLHF-Vn: from sampling pairs to evaluation."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from data_contracts.artifacts import ArtifactRef
from flows.environment import places
from flows.graph import BASE, Node, base_nodes, version_label, version_nodes
from flows.occupied import occupied
from flows.progress import duration
from flows.recipe import Recipe, load_recipe, validated
from flows.runner import NodeResult, Walk
from flows.tasks import run_task


@flow(name="rlhf-iteration", flow_run_name="rlhf-v{version}", persist_result=False)
def rlhf_iteration(
    version: int,
    recipe: str | dict[str, Any],
    home: str,
    force: list[str] | None = None,
    pinned: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Walk one iteration; version 0 is the base, from raw text to the chat model.

    Args:
        version: n of RLHF-Vn.
        recipe: a recipe's name, its file, or all of its values.
        home: folder or URL of the store.
        force: nodes to make again although they are there.
        pinned: outputs of earlier versions to read, by "base/sft:model"; the ledger's when None.

    Returns the pinned outputs with this iteration's added.
    """
    walk = open_walk(recipe, home, pinned)
    make = base_nodes(walk.recipe) if version == BASE else version_nodes(walk.recipe, version)
    with occupied(walk.store), walk.tracker:
        results = [run_task(node, walk, force or []) for node in make]
    _publish_board(version, results)
    return {name: ref.model_dump() for name, ref in walk.outputs.items()}


def open_walk(
    recipe: str | dict[str, Any] | Recipe, home: str, pinned: dict[str, Any] | None = None
) -> Walk:
    """A walk over a recipe that may come by name, as a file, or as the values of one."""
    typed = as_recipe(recipe)
    where = places(home)
    refs = {name: ArtifactRef.model_validate(ref) for name, ref in (pinned or {}).items()}
    return Walk(typed, where, refs)


def as_recipe(recipe: str | dict[str, Any] | Recipe) -> Recipe:
    """The typed recipe of a flow's parameter."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str):
        return load_recipe(recipe)
    return validated(recipe, str(recipe.get("name", "in the flow's parameters")))


def _publish_board(version: int, results: list[NodeResult]) -> None:
    """The iteration's table in the Prefect UI; its key keeps the history of all runs."""
    create_table_artifact(
        key=f"rlhf-{version_label(version)}",
        description=f"Stages of {version_label(version)}",
        table=[_board_row(result.node, result) for result in results],
    )


def _board_row(node: Node, result: NodeResult) -> dict[str, str]:
    manifest = result.manifest
    return {
        "node": node.id.name,
        "state": "reused" if result.reused else "made",
        "time": duration(manifest.seconds),
        "rows": ", ".join(f"{role} {n:,}" for role, n in manifest.num_rows.items()),
        "outputs": ", ".join(f"{role} {r.digest[:12]}" for role, r in manifest.outputs.items()),
        "key": manifest.key[:12],
        "finished": manifest.finished_at,
    }
