"""The Prefect flow that runs one stage of one iteration again."""

from enum import StrEnum
from typing import Any

from prefect import flow

from data_contracts.store import Store
from flows.boards import publish_board, publish_overview
from flows.cascade import Rerun, rerun
from flows.iteration import open_walk, pass_gates
from flows.node import Node
from flows.numbering import LAST_STAGE
from flows.occupied import occupied
from flows.planner import as_far_as_begun
from flows.runner import NodeResult, Walk, find_nodes
from flows.tasks import finished_tasks, run_task


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
        cascade: then whatever follows from it and stands on other outputs than there are now, as
            far as that goes.

    A retry goes on: what this flow run has made by force already, it does not make again.

    Returns for every node that ran "same" or "changed".
    """
    finished = finished_tasks() if force else set()

    def run(node: Node, walk: Walk, forced: bool) -> NodeResult:
        is_forced = forced and node.id.name not in finished
        return run_task(node, walk, [str(node.id)] if is_forced else [])

    reruns: list[Rerun] = []
    with occupied(Store.open(home)):  # first: who waits for it reads what there is then
        walk = open_walk(recipe, home)
        walk.recipe = as_far_as_begun(walk.recipe, walk.ledger)
        wanted = find_nodes(walk.recipe, stage.value, iteration)
        with walk.tracker:
            for done in rerun(wanted, walk, force=force, cascade=cascade, run=run):
                reruns.append(done)
                # at once: a retry of a cascade that breaks off later finds this node done
                if _is_last(done.result.node):
                    pass_gates(walk, done.result.node.id.version)
    publish_board(iteration, [done.result for done in reruns])
    publish_overview(walk)
    return {str(done.result.node.id): "same" if done.is_same else "changed" for done in reruns}


def _is_last(node: Node) -> bool:
    """Whether an iteration is judged anew after this node."""
    return node.stage == LAST_STAGE
