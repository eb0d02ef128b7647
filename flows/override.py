"""The Prefect flow that asks a person about models which did not pass their gates.

It suspends with a form: nobody sits in a worker, and the next iteration is not held up. What the
person says is recorded in the home and, with the reason, on the model's version in MLflow.
"""

from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Completed, Failed
from pydantic import Field

from flows.gates import Override, Verdict, read_verdict, record_override
from flows.iteration import open_walk
from flows.models import model_digests
from flows.node import version_label
from flows.runner import Walk
from flows.tracking.registry import Moves

DAYS_TO_ANSWER = 14
_SUPERSEDED = "Superseded"
_MODELS = {"policy": "policy", "helpfulness_rm": "helpfulness-rm", "safety_rm": "safety-rm"}
"""Field of the form → registered model."""


class Decision(RunInput):
    """What the person decides."""

    policy: bool = Field(default=False, description="Make the policy the champion.")
    helpfulness_rm: bool = Field(
        default=False, description="Make the helpfulness reward model the champion."
    )
    safety_rm: bool = Field(default=False, description="Make the safety reward model the champion.")
    by: str = Field(min_length=1, description="Your name.")
    reason: str = Field(min_length=1, description="Why the gates are set aside, or hold.")

    def promoted(self) -> list[str]:
        """Registered names of the models that are let through."""
        return [name for field, name in _MODELS.items() if getattr(self, field)]


@flow(name="gate-override", flow_run_name="rlhf-v{iteration}-gates", persist_result=False)
def gate_override(
    iteration: int, verdict: str, recipe: str | dict[str, Any], home: str
) -> State[None]:
    """Ask about the gates of an iteration, and move the champions that the answer names.

    Args:
        iteration: n of RLHF-Vn.
        verdict: digest of the verdict that is asked about.
        recipe: a recipe's name, its file, or all of its values.
        home: folder or URL of the store.
    """
    walk = open_walk(recipe, home)
    judged = read_verdict(walk.store, iteration)
    if judged.digest() != verdict:
        return Completed(name=_SUPERSEDED, message=f"RLHF-V{iteration} has been judged again")
    form = Decision.with_initial_data(description=_question(judged))
    # lower case, digits and dashes only: with another key the run could not be resumed
    key = f"rlhf-{version_label(iteration)}-gates"
    answer = suspend_flow_run(wait_for_input=form, key=key, timeout=DAYS_TO_ANSWER * 86_400)
    return decide(walk, judged, answer)


def decide(walk: Walk, judged: Verdict, answer: Decision) -> State[None]:
    """Move the champions that a person names, and record what has become of it.

    Superseded when one of the models has been made again since it was judged; Failed, to be
    retried, when MLflow does not answer or has not got one of them.
    """
    heads = model_digests(walk.recipe, walk.ledger, judged.version)
    if other := [n for n in answer.promoted() if not judged.judged(n, heads.get(n))]:
        return Completed(
            name=_SUPERSEDED,
            message=f"{', '.join(other)} of RLHF-V{judged.version}: not what was judged, made "
            "again since; run evaluate of that iteration again to have it judged",
        )
    moves = Moves()
    if named := {name: heads[name] for name in answer.promoted()}:
        found = walk.tracker.promote_for(judged.version, named, f"{answer.by}: {answer.reason}")
        if found is None:
            return Failed(message="MLflow does not answer; retry this run, the answer is kept")
        moves = found
    if moves.unregistered:
        return Failed(
            message=f"{', '.join(moves.unregistered)} of RLHF-V{judged.version}: not in MLflow; "
            "`rlhf run` or the next iteration registers it. Then retry this run, the answer is kept"
        )
    record_override(
        walk.store,
        Override(
            version=judged.version,
            verdict=judged.digest(),
            promoted=moves.champions,
            kept=moves.kept,
            by=answer.by,
            reason=answer.reason,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
    return Completed(message=f"Champions by {answer.by}: {_outcome(moves)}")


def _outcome(moves: Moves) -> str:
    kept = [f"{name}: {why}" for name, why in moves.kept.items()]
    return "; ".join([", ".join(moves.champions) or "unmoved", *kept])


def _question(verdict: Verdict) -> str:
    lines = [f"- {'passed' if gate.passed else '**failed**'}: {gate}" for gate in verdict.gates]
    return "\n".join([f"Not all models of RLHF-V{verdict.version} passed their gates:", "", *lines])
