"""(m), (o): instructions that last, and answers distilled from a safety preprompt."""

import math
from collections.abc import Sequence
from typing import Any

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract
from data_contracts.ratings import Domain
from paper import gold
from paper.finding import Chart, Effect, Estimate, Estimates, Finding, paired
from paper.findings.demonstrations import CLOSE_ANSWERS, HELD, levels
from paper.lab import Lab
from stages.models.retention import RETENTION

NUM_PROMPTS = {Domain.helpfulness: 24, Domain.safety: 12}
"""The evaluation's other part, which is not read here."""


def further_tuned(lab: Lab, start: ArtifactRef, demonstrations: ArtifactRef) -> ArtifactRef:
    """A model tuned further on a stage's demonstrations, with rejection sampling's settings."""
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
    talking = lab.with_dialogues()
    made = talking.made(
        "ghost_attention",
        **settings_of(talking.recipe.ghost_attention),
        version=1,
        prompts=talking.prompts,
        policy=talking.sft,
    )
    models = {
        "without": talking.sft,
        "with": further_tuned(talking, talking.sft, made.outputs["demonstrations"]),
    }
    settings = talking.recipe.evaluate.retention
    assert settings is not None
    kept = {name: [0] * settings.num_turns for name in models}
    for row in retention(talking, models):
        kept[row["version"]][int(row["group"].removeprefix("turn ")) - 1] = row["num_so"]
    shares = {
        name: [proportion(num, settings.num_dialogues) for num in nums]
        for name, nums in kept.items()
    }
    estimates = {
        f"{name}/{turn}": share
        for name, turns in shares.items()
        for turn, share in enumerate(turns, start=1)
    }
    later = {name: after_the_first(nums, settings.num_dialogues) for name, nums in kept.items()}
    estimates["lasts"] = later["with"] - later["without"]
    estimates["is lost without"] = shares["without"][0] - shares["without"][-1]
    return estimates


def after_the_first(num_kept: Sequence[int], num_dialogues: int) -> Estimate:
    """Share of the answers after the first turn, given how many dialogues keep it in each turn.

    In the error the answers of a dialogue count as one: they stand and fall together.
    """
    return proportion(sum(num_kept[1:]) / (len(num_kept) - 1), num_dialogues)


def retention(lab: Lab, models: dict[str, ArtifactRef]) -> list[dict[str, Any]]:
    """The rates of kept instructions that `evaluate` finds, turn by turn.

    Its scores of reward models are not read, so the Safety RM stands in for both.
    """
    judge = lab.output(1, "reward_model-safety")
    evaluated = lab.made(
        "evaluate",
        **{**settings_of(lab.recipe.evaluate), "num_prompts": NUM_PROMPTS},
        version=1,
        models=models,
        helpfulness_rm=judge,
        safety_rm=judge,
        prompts=lab.prompts,
    )
    rows = lab.rows(evaluated.outputs["rates"])
    return [row for row in rows if row["measure"] == RETENTION]


def proportion(num_so: float, num: int) -> Estimate:
    """A share with the standard error of a proportion, which is never quite 0."""
    smoothed = (num_so + 1) / (num + 2)
    return Estimate(num_so / num, math.sqrt(smoothed * (1 - smoothed) / num))


def settings_of(settings: Contract) -> dict[str, Any]:
    """A settings record's values by field."""
    return {name: getattr(settings, name) for name in type(settings).model_fields}


# ---- (o) context distillation


def context_distillation(lab: Lab) -> Estimates:
    """Learnt beside V1's best answers to harmless prompts: no distilled answer, those from behind
    a preprompt that is the same for all, those from behind the risk category's.
    """
    talking = lab.with_dialogues()
    judge = talking.output(1, "reward_model-safety")
    models = {"none": with_distilled(talking, ())}
    for method in ("untargeted", "targeted"):
        made = talking.made(
            "safety_distillation",
            **{**settings_of(talking.recipe.safety_distillation), "method": method},
            version=1,
            prompts=talking.prompts,
            policy=talking.sft,
            safety_rm=judge,
        )
        models[method] = with_distilled(talking, (made.outputs["demonstrations"],))
    scores: dict[str, dict[Domain, gold.ByPrompt]] = {}
    for name, model in models.items():
        rows = gold.answers(
            talking, model, helpfulness_rm=judge, safety_rm=judge, num_samples=CLOSE_ANSWERS
        )
        scores[name] = {domain: gold.by_prompt(rows, domain) for domain in Domain}
    estimates = levels(scores)
    targeted = scores["targeted"]
    estimates["distilled"] = paired(targeted[Domain.safety], scores["none"][Domain.safety])
    estimates["targeted"] = paired(targeted[Domain.safety], scores["untargeted"][Domain.safety])
    kept = paired(targeted[Domain.helpfulness], scores["none"][Domain.helpfulness])
    estimates["helpfulness held"] = Estimate(HELD + kept.value, kept.error)
    return estimates


def with_distilled(talking: Lab, distilled: tuple[ArtifactRef, ...]) -> ArtifactRef:
    """V1's model by rejection sampling on harmless prompts, with these demonstrations beside."""
    return talking.varied(
        1,
        "rejection_sampling",
        num_prompts={Domain.helpfulness: talking.scale.rejection_sampling[Domain.helpfulness]},
        num_samples=talking.scale.num_samples,
        extra_demonstrations=distilled,
    ).outputs["model"]


FINDINGS = (
    Finding(
        "m",
        "Table 30",
        "With Ghost Attention an instruction of the first turn is kept in later turns; without it "
        "is lost.",
        "The chat model of a world with dialogues, and the same fine-tuned on Ghost Attention's, "
        "hold the same dialogues of six turns, the instruction in the first turn alone; a rule "
        "checks every answer. A dialogue that ends before its sixth turn, for want of context, "
        "counts as one that does not keep it.",
        ghost_attention,
        (
            Effect("lasts", "kept in the turns after the first, with minus without"),
            Effect("is lost without", "kept without, first turn minus last"),
        ),
        (Chart("lines", {"with": "with", "without": "without"}, "turn", "instruction kept"),),
        notes="It fades here, turn by turn, where the paper's stays at 100 %.",
        takes_long=True,
        weight=20,
    ),
    Finding(
        "o",
        "Figure 16",
        "Distilling answers given behind a safety preprompt makes the model safer, most with a "
        "template for the risk category, and helpfulness is held.",
        "V1's rejection sampling on harmless prompts learns beside its best answers what the SFT "
        "model answers to adversarial prompts from behind a generic preprompt, or behind the "
        "category's template, where the Safety RM prefers it to the plain answer. Held means: "
        f"gold helpfulness falls by less than {HELD}.",
        context_distillation,
        (
            Effect("distilled", "gold safety, targeted minus none"),
            Effect("targeted", "gold safety, targeted minus untargeted"),
            Effect("helpfulness held", f"{HELD} plus the change of gold helpfulness"),
        ),
        (Chart("bars", {d.value: d.value for d in Domain}, "preprompt", "gold score"),),
        takes_long=True,
        weight=11,
    ),
)
