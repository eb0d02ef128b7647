"""The Prefect flow that runs one stage of one iteration again."""

from enum import StrEnum
from typing import Any

from prefect import flow

from flows.boards import publish_board, publish_overview
from flows.cascade import rerun
from flows.iteration import open_walk, pass_gates
from flows.node import Node
from flows.numbering import LAST_STAGE
from flows.occupied import occupied
from flows.runner import find_nodes
from flows.tasks import run_task


class StageName(StrEnum):
    """Every node of the pipeline: the list that Prefect's form offers."""

    sandbox_world = "sandbox_world"
    ingest = "ingest"
    tokenizer = "tokenizer"
    tokenize_corpus = "tokenize_corpus"
    pretrain = "pretrain"
    sft = "sft"
    student_base = "pretrain-student"
    sample_pairs = "sample_pairs"
    collect_preferences = "collect_preferences"
    helpfulness_rm = "reward_model-helpfulness"
    safety_rm = "reward_model-safety"
    ghost_attention = "ghost_attention"
    safety_distillation = "safety_distillation"
    rejection_sampling = "rejection_sampling"
    ppo = "ppo"
    distillation = "distillation"
    evaluate = "evaluate"


@flow(
    name="rerun-stage",
    flow_run_name="rlhf-v{iteration}-{stage}",
    persist_result=False,
)
def rerun_stage(
    iteration: int,
    stage: StageName,
    recipe: str | dict[str, Any],
    home: str,
    force: bool = True,
    cascade: bool = False,
) -> dict[str, str]:
    """Run one stage on the inputs that its iteration was begun with.

    Args:
        iteration: n of RLHF-Vn; 0 for the base.
        stage: what to run.
        recipe: a recipe's name, its file, or all of its values.
        home: folder or URL of the store.
        force: make it again although it is there.
        cascade: then whatever reads an output that has changed, as far as that goes.

    Returns for every node that ran "same" or "changed".
    """
    walk = open_walk(recipe, home)
    wanted = find_nodes(walk.recipe, stage.value, iteration)
    with occupied(walk.store), walk.tracker:
        reruns = list(
            rerun(
                wanted,
                walk,
                force=force,
                cascade=cascade,
                run=lambda node, walk, forced: run_task(node, walk, [str(node.id)] * forced),
            )
        )
        for version in sorted(
            {d.result.node.id.version for d in reruns if _is_last(d.result.node)}
        ):
            pass_gates(walk, version)
    publish_board(iteration, [done.result for done in reruns])
    publish_overview(walk)
    return {str(done.result.node.id): "same" if done.is_same else "changed" for done in reruns}


def _is_last(node: Node) -> bool:
    """Whether an iteration is judged anew after this node."""
    return node.stage == LAST_STAGE
