"""(n), (p), (q): which answers to learn from: how safe, how clean, and whose."""

from collections.abc import Mapping
from typing import Any

from data_contracts.artifacts import ArtifactRef
from data_contracts.ratings import Domain
from paper import gold
from paper.finding import Chart, Effect, Estimate, Estimates, Finding, mean, paired
from paper.findings.reward_models import small_chat_model
from paper.lab import Lab
from stages.sandbox.world import WorldSettings

TIMES_FEWER = 10
"""So many of the recipe's noisy demonstrations stand against one clean one."""
CLEAN = {
    "content_flaw_rate": 0.0,
    "missing_closing_rate": 0.0,
    "untidy_rate": 0.0,
    "compliance_rate": 0.0,
    "borderline_refusal_rate": 0.0,
    "refusal_reason_rate": 1.0,
    "refusal_alternative_rate": 1.0,
}
SAFETY_SHARES = (0.0, 0.25, 0.5, 1.0)
"""Of the safety data of Figure 14."""
HELPFUL_TO_SAFE = 9
"""Helpfulness prompts to a safety prompt with all of it: 0.9M and 0.1M samples in the paper."""
HELD = 0.03
"""Gold helpfulness that may be lost where it is said to be held."""
STUDENT = "small"
"""An eighth of the large model, as 7B is a tenth of 70B."""
STUDENT_EPOCHS = 8
"""Of fine-tuning, on either's samples: in the large model's two so small a model learns little of
what it is shown."""
TEACHER_VERSION = 3
"""Whose best samples the student is shown: the large model's after two rounds. In the first its
policy is the SFT model, hardly better than what the student is."""
CLOSE_ANSWERS = 8
"""To each prompt, where what is asked is whether two models are within HELD of each other."""


def levels(scores: Mapping[str, Mapping[Domain, gold.ByPrompt]]) -> Estimates:
    """Mean gold score of each model in each domain."""
    return {
        f"{domain}/{name}": mean(list(found[domain].values()))
        for name, found in scores.items()
        for domain in Domain
    }


def both_domains(lab: Lab, model: ArtifactRef, **changes: Any) -> dict[Domain, gold.ByPrompt]:
    """A model's gold scores on held-out prompts; `changes` are fields of the probe."""
    rows = gold.answers(lab, model, **changes)
    return {domain: gold.by_prompt(rows, domain) for domain in Domain}


# ---- (n) more safety data


def safety_data(lab: Lab) -> Estimates:
    """Rejection sampling of V1 with more and more safety prompts, up to the paper's proportion."""
    num_safety = lab.scale.rejection_sampling[Domain.helpfulness] / HELPFUL_TO_SAFE
    scores = {
        f"{share:.0%}": both_domains(
            lab,
            with_safety_prompts(lab, round(share * num_safety)),
            num_samples=CLOSE_ANSWERS if share in (0, 1) else lab.scale.test_answers,
        )
        for share in SAFETY_SHARES
    }
    estimates = levels(scores)
    most, none = scores["100%"], scores["0%"]
    estimates["safer"] = paired(most[Domain.safety], none[Domain.safety])
    kept = paired(most[Domain.helpfulness], none[Domain.helpfulness])
    estimates["helpfulness held"] = Estimate(HELD + kept.value, kept.error)
    return estimates


def with_safety_prompts(lab: Lab, count: int) -> ArtifactRef:
    """V1's model when only so many safety prompts are sampled."""
    helpful = lab.scale.rejection_sampling[Domain.helpfulness]
    counts = {Domain.helpfulness: helpful, Domain.safety: count}
    return lab.varied(1, "rejection_sampling", num_prompts=counts).outputs["model"]


# ---- (p) few clean, many noisy


def few_clean(lab: Lab) -> Estimates:
    """SFT on a few clean demonstrations and on many noisy ones."""
    scores = {
        "few clean": both_domains(lab, tuned_on_clean(lab)),
        "many noisy": both_domains(lab, lab.sft),
    }
    estimates = levels(scores)
    for domain in Domain:
        gain = paired(scores["few clean"][domain], scores["many noisy"][domain])
        estimates[f"clean, {domain}"] = gain
    return estimates


def tuned_on_clean(lab: Lab) -> ArtifactRef:
    """The base model fine-tuned on clean demonstrations, for as many steps as on the noisy ones."""
    assert lab.recipe.world is not None
    num_clean = lab.recipe.world.num_demonstrations // TIMES_FEWER
    world = lab.recipe.world.model_copy(
        update={"num_documents": 10, "num_open_pairs": 10, "num_demonstrations": num_clean, **CLEAN}
    )
    files = lab.made("sandbox_world", **_fields(world)).outputs["files"]
    demonstrations = lab.ingested(files)["demonstrations"]
    num_epochs = lab.recipe.sft.num_epochs * TIMES_FEWER
    return lab.varied(0, "sft", demonstrations=demonstrations, num_epochs=num_epochs).outputs[
        "model"
    ]


def _fields(settings: WorldSettings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in type(settings).model_fields}


# ---- (q) distillation


def distillation(lab: Lab) -> Estimates:
    """A smaller model: its own rejection sampling against the large model's best samples."""
    student = small_chat_model(lab, STUDENT)
    tuning = lab.recipe.rejection_sampling.finetuning.model_copy(
        update={"num_epochs": STUDENT_EPOCHS}
    )
    own = lab.varied(
        1, "rejection_sampling", policy=student, start_from=student, finetuning=tuning
    ).outputs
    taught = lab.varied(
        0,
        "sft",
        init_from=student,
        demonstrations=lab.output(TEACHER_VERSION, "rejection_sampling", "demonstrations"),
        learning_rate=tuning.learning_rate,
        num_epochs=tuning.num_epochs,
    ).outputs
    scores = {
        "small SFT": both_domains(lab, student),
        "own samples": both_domains(lab, own["model"]),
        "distilled": both_domains(lab, taught["model"]),
    }
    estimates = levels(scores)
    for domain in Domain:
        gain = paired(scores["distilled"][domain], scores["own samples"][domain])
        estimates[f"distilled, {domain}"] = gain
    return estimates


FINDINGS = (
    Finding(
        "n",
        "Figure 14",
        "More safety data makes the model safer, and helpfulness is held.",
        "V1's rejection sampling with 0, 25, 50 and 100 % of the safety prompts beside the same "
        f"helpfulness prompts, {HELPFUL_TO_SAFE} to each safety prompt at 100 %, as in the paper. "
        f"Held means: gold helpfulness falls by less than {HELD}.",
        safety_data,
        (
            Effect("safer", "gold safety, all safety prompts minus none"),
            Effect("helpfulness held", f"{HELD} plus the change of gold helpfulness"),
        ),
        (Chart("lines", {d.value: d.value for d in Domain}, "safety prompts", "gold score"),),
        weight=7,
    ),
    Finding(
        "p",
        "§3.1",
        "A few clean demonstrations are worth more than many noisy ones.",
        f"SFT on clean demonstrations and on the recipe's noisy ones, {TIMES_FEWER} times as many, "
        "for the same number of steps.",
        few_clean,
        tuple(
            Effect(f"clean, {d.value}", f"gold {d.value}, few clean minus many noisy")
            for d in Domain
        ),
        (Chart("bars", {d.value: d.value for d in Domain}, "demonstrations", "gold score"),),
        takes_long=True,
        weight=4,
    ),
    Finding(
        "q",
        "§3.2.3",
        "A smaller model learns more from the large model's best samples than from its own.",
        "A small model's own rejection sampling against fine-tuning on the best answers of the "
        f"large model's V{TEACHER_VERSION}, to as many prompts and for as many steps.",
        distillation,
        (Effect("distilled, helpfulness", "gold helpfulness, distilled minus own samples"),),
        (Chart("bars", {d.value: d.value for d in Domain}, "model", "gold score"),),
        weight=5,
    ),
)
