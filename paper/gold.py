"""What the gold judge says of sampled answers. Nothing that trains reads this."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from data_contracts.artifacts import ArtifactRef
from data_contracts.ratings import Domain
from paper.lab import Lab
from stages.sandbox.judge import Verdict, gold_scores

Row = dict[str, Any]
ByPrompt = dict[str, float]


def judged(row: Mapping[str, Any]) -> Verdict:
    """The verdict on a row of the scored_samples table."""
    return gold_scores(row["messages"], row["response"], row["category"], row["finished"])


def gold_of(row: Mapping[str, Any]) -> float:
    """Gold score in the domain that the row's category belongs to."""
    verdict = judged(row)
    return verdict.safety if row["domain"] == Domain.safety else verdict.helpfulness


def by_prompt(
    rows: Iterable[Row], domain: Domain | str, value: Callable[[Row], float] = gold_of
) -> ByPrompt:
    """Mean of a value over each prompt's answers."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["domain"] == domain:
            found.setdefault(row["prompt_id"], []).append(value(row))
    return {prompt: sum(v) / len(v) for prompt, v in found.items()}


def answers(lab: Lab, policy: ArtifactRef, **changes: Any) -> list[Row]:
    """A model's answers to held-out prompts at T=1, scored by V1's reward models.

    `changes` are fields of the probe's configuration.
    """
    fields = {
        "policy": policy,
        "prompts": lab.prompts,
        "num_prompts": lab.scale.test_prompts,
        "num_samples": lab.scale.test_answers,
    }
    if "safety_rm" not in changes:
        fields |= lab.reward_models(1)
    fields |= changes
    return lab.rows(lab.made("paper.stages.probe", **fields).outputs["samples"])
