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
from flows.iteration import model_digests, open_walk
from flows.node import version_label

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
    digests = model_digests(walk, iteration, answer.promoted())
    if digests:
        walk.tracker.promote(iteration, digests, f"{answer.by}: {answer.reason}")
        if walk.tracker.broken:
            return Failed(message="MLflow does not answer; retry this run, the answer is kept")
    record_override(
        walk.store,
        Override(
            version=iteration,
            verdict=verdict,
            promoted=digests,
            by=answer.by,
            reason=answer.reason,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
    return Completed(message=f"Champions by {answer.by}: {', '.join(digests) or 'unmoved'}")


def _question(verdict: Verdict) -> str:
    lines = [f"- {'passed' if gate.passed else '**failed**'}: {gate}" for gate in verdict.gates]
    return "\n".join([f"Not all models of RLHF-V{verdict.version} passed their gates:", "", *lines])
