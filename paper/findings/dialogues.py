"""(m), (o): instructions that last, and answers distilled from a safety preprompt."""

import math
from collections.abc import Mapping

from data_contracts.artifacts import ArtifactRef
from data_contracts.ratings import Domain
from paper.finding import Chart, Effect, Estimate, Estimates, Finding, paired
from paper.findings.demonstrations import HELD, both_domains, levels
from paper.lab import Lab
from stages.models.retention import RETENTION

NUM_PROMPTS = {"helpfulness": 24, "safety": 12}
"""The evaluation's other part, which is not read here."""


def further_tuned(lab: Lab, start: ArtifactRef, demonstrations: ArtifactRef) -> ArtifactRef:
    """A model fine-tuned further on a stage's demonstrations, with rejection sampling's settings."""
    tuning = lab.recipe.rejection_sampling.finetuning
    return lab.varied(
        0,
        "sft",
        init_from=start,
        demonstrations=demonstrations,
        learning_rate=tuning.learning_rate,
        num_epochs=tuning.num_epochs,
        overlong="drop",
    ).outputs["model"]


# ---- (m) Ghost Attention


def ghost_attention(lab: Lab) -> Estimates:
    """Share of answers that keep the first turn's instruction, by turn (Table 30)."""
    before = lab.output(1, "rejection_sampling")
    made = lab.made(
        "ghost_attention",
        **settings_of(lab.recipe.ghost_attention),
        version=2,
        prompts=lab.prompts,
        policy=before,
    )
    after = further_tuned(lab, before, made.outputs["demonstrations"])
    evaluated = lab.varied(
        1,
        "evaluate",
        models={"sft": lab.sft, "without": before, "with": after},
        retention=lab.recipe.evaluate.retention,
        num_prompts=NUM_PROMPTS,
    )
    estimates: Estimates = {}
    turns: dict[str, list[Estimate]] = {"without": [], "with": []}
    for row in lab.rows(evaluated.outputs["rates"]):
        if row["measure"] == RETENTION and row["version"] in turns:
            kept = proportion(row)
            estimates[f"{row['version']}/{row['group'].removeprefix('turn ')}"] = kept
            turns[row["version"]].append(kept)
    estimates["lasts"] = turns["with"][-1] - turns["without"][-1]
    estimates["is lost without"] = turns["without"][0] - turns["without"][-1]
    return estimates


def proportion(row: Mapping[str, float]) -> Estimate:
    """A rate with the standard error of a proportion, which is never quite 0."""
    num, rate = row["num_answers"], row["rate"]
    smoothed = (rate * num + 1) / (num + 2)
    return Estimate(rate, math.sqrt(smoothed * (1 - smoothed) / num))


def settings_of(settings: object) -> dict[str, object]:
    """A settings record's values by field."""
    return {name: getattr(settings, name) for name in type(settings).model_fields}  # type: ignore[attr-defined]


# ---- (o) context distillation


def context_distillation(lab: Lab) -> Estimates:
    """Fine-tuned on answers from behind a preprompt: none, the same for all, by risk category."""
    before = lab.sft
    models = {"none": before}
    for method in ("untargeted", "targeted"):
        made = lab.made(
            "safety_distillation",
            **{**settings_of(lab.recipe.safety_distillation), "method": method},
            version=1,
            prompts=lab.prompts,
            policy=before,
            safety_rm=lab.output(1, "reward_model-safety"),
        )
        models[method] = further_tuned(lab, before, made.outputs["demonstrations"])
    scores = {name: both_domains(lab, model) for name, model in models.items()}
    estimates = levels(scores)
    targeted = scores["targeted"]
    estimates["distilled"] = paired(targeted[Domain.safety], scores["none"][Domain.safety])
    estimates["targeted"] = paired(targeted[Domain.safety], scores["untargeted"][Domain.safety])
    kept = paired(targeted[Domain.helpfulness], scores["none"][Domain.helpfulness])
    estimates["helpfulness held"] = Estimate(HELD + kept.value, kept.error)
    return estimates


FINDINGS = (
    Finding(
        "m",
        "Table 30",
        "With Ghost Attention an instruction of the first turn lasts; without it is lost after a "
        "few turns.",
        "V1 fine-tuned on Ghost Attention's dialogues and V1 itself hold the same dialogues of six "
        "turns, the instruction in the first alone; a rule checks every answer.",
        ghost_attention,
        (
            Effect("lasts", "kept in the last turn, with minus without"),
            Effect("is lost without", "kept without, first turn minus last"),
        ),
        (Chart("lines", {"with": "with", "without": "without"}, "turn", "instruction kept"),),
    ),
    Finding(
        "o",
        "Figure 16",
        "Distilling answers given behind a safety preprompt makes the model safer, most with a "
        "template for the risk category.",
        "The SFT model fine-tuned on its own answers from behind a generic preprompt, or behind the "
        "category's template, where the Safety RM prefers them to the plain answer.",
        context_distillation,
        (
            Effect("distilled", "gold safety, targeted minus none"),
            Effect("targeted", "gold safety, targeted minus untargeted"),
            Effect("helpfulness held", f"{HELD} plus the change of gold helpfulness"),
        ),
        (Chart("bars", {d.value: d.value for d in Domain}, "preprompt", "gold score"),),
    ),
)

