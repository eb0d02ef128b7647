"""(h), (i), (j): what the iterations do: forgetting, progress, and PPO on top."""

from typing import Any

from data_contracts.artifacts import ArtifactRef
from data_contracts.ratings import Domain
from paper import gold
from paper.finding import Chart, Effect, Estimates, Finding, mean, paired, win_rate
from paper.lab import Lab

VERSES = "verse"
"""The skill whose prompts only the first iteration has."""
NUM_FORGETTING_ITERATIONS = 3
FORGETTING_EPOCHS = 4


# ---- (i) by version


def progress(lab: Lab) -> Estimates:
    """Gold win rate over SFT of every version, both domains (Figure 11)."""
    rows = lab.rows(lab.output(5, "evaluate", "evaluations"))
    estimates: Estimates = {}
    for domain in Domain:
        scores = {
            label: {
                row["prompt_id"]: row[f"gold_{domain}"]
                for row in rows
                if row["version"] == label and row["domain"] == domain
            }
            for label in dict.fromkeys(row["version"] for row in rows)
        }
        for version in range(1, 6):
            rate = win_rate(scores[f"v{version}"], scores["sft"])
            estimates[f"{domain}/V{version}"] = rate
        estimates[f"V5 over SFT, {domain}"] = estimates[f"{domain}/V5"]
        estimates[f"V5 over V1, {domain}"] = win_rate(scores["v5"], scores["v1"])
    return estimates


# ---- (j) PPO on top of rejection sampling


def ppo_on_top(lab: Lab) -> Estimates:
    """V5 before and after PPO, on the same prompts at T=1."""
    models = {
        "V4": lab.output(4, "rejection_sampling"),
        "V5 before PPO": lab.output(5, "rejection_sampling"),
        "V5": lab.output(5, "ppo"),
    }
    rows = {name: gold.answers(lab, model) for name, model in models.items()}
    estimates: Estimates = {}
    for domain in Domain:
        scores = {name: gold.by_prompt(found, domain) for name, found in rows.items()}
        for name, by_prompt in scores.items():
            estimates[f"{domain}/{name}"] = mean(list(by_prompt.values()))
        gain = paired(scores["V5"], scores["V5 before PPO"])
        estimates[f"gain, {domain}"] = gain
    return estimates


# ---- (h) forgetting


def forgetting(lab: Lab) -> Estimates:
    """Three iterations, verse prompts in the first alone, each fine-tuned from the base model."""
    without_verse = lab.made(
        "paper.stages.choose", table=lab.prompts, without_categories=(VERSES,)
    ).outputs["table"]
    first = iteration(lab, 1, lab.prompts, lab.sft, ())
    arms = {
        "previous only": later_iterations(lab, without_verse, first, keeps_all=False),
        "all iterations": later_iterations(lab, without_verse, first, keeps_all=True),
    }
    estimates: Estimates = {}
    verses: dict[str, list[gold.ByPrompt]] = {}
    for arm, models in arms.items():
        verses[arm] = [verse_scores(lab, model) for model in (first["model"], *models)]
        for i, by_prompt in enumerate(verses[arm], start=1):
            estimates[f"{arm}/V{i}"] = mean(list(by_prompt.values()))
    previous, everything = verses["previous only"], verses["all iterations"]
    estimates["forgotten"] = paired(previous[0], previous[-1])
    estimates["repaired"] = paired(everything[-1], previous[-1])
    return estimates


def iteration(
    lab: Lab,
    version: int,
    prompts: ArtifactRef,
    policy: ArtifactRef,
    earlier: tuple[ArtifactRef, ...],
) -> dict[str, ArtifactRef]:
    """One round of rejection sampling that fine-tunes the base model, as the paper's do."""
    tuning = lab.recipe.rejection_sampling.finetuning
    made = lab.varied(
        1,
        "rejection_sampling",
        version=version,
        prompts=prompts,
        policy=policy,
        start_from=lab.output(0, "pretrain"),
        earlier_samples=earlier,
        num_prompts={Domain.helpfulness: lab.scale.rejection_sampling[Domain.helpfulness]},
        num_samples=4,
        finetuning=tuning.model_copy(update={"num_epochs": FORGETTING_EPOCHS}),
    )
    return made.outputs


def later_iterations(
    lab: Lab, prompts: ArtifactRef, first: dict[str, ArtifactRef], *, keeps_all: bool
) -> list[ArtifactRef]:
    """Models of the second iteration and on."""
    outputs = [first]
    for version in range(2, NUM_FORGETTING_ITERATIONS + 1):
        bag = tuple(o["scored_samples"] for o in outputs) if keeps_all else ()
        outputs.append(iteration(lab, version, prompts, outputs[-1]["model"], bag))
    return [o["model"] for o in outputs[1:]]


def verse_scores(lab: Lab, model: ArtifactRef) -> gold.ByPrompt:
    """Gold scores on held-out verse prompts."""
    rows = gold.answers(lab, model, num_prompts={Domain.helpfulness: 2_000}, **only_verse(lab))
    return gold.by_prompt(rows, Domain.helpfulness)


def only_verse(lab: Lab) -> dict[str, Any]:
    """Held-out verse prompts as a field of the probe."""
    made = lab.made("paper.stages.choose", table=lab.prompts, held_out_category=VERSES)
    return {"prompts": made.outputs["table"]}


FINDINGS = (
    Finding(
        "h",
        "§3.2.3",
        "Fine-tuned on the preceding iteration's samples alone the model forgets a skill (rhyming "
        "verse); samples of all iterations repair it.",
        "Three rounds of rejection sampling, each from the base model, with verse prompts in the "
        "first round only; gold score on held-out verse prompts.",
        forgetting,
        (
            Effect("forgotten", "verse, V1 minus V3 with the previous iteration's samples"),
            Effect("repaired", "verse at V3, all iterations' samples minus the previous one's"),
        ),
        (
            Chart(
                "lines",
                {"previous only": "previous only", "all iterations": "all iterations"},
                "version",
                "gold score on verse",
            ),
        ),
        weight=8,
    ),
    Finding(
        "i",
        "Figure 11",
        "From V1 to V5 the win rate over SFT rises, on helpfulness and on safety.",
        "Every version answers the same held-out prompts at T=1; the gold judge compares with "
        "SFT's answers, ties half. Tested is the last version against SFT and against the first; "
        "the chart shows the steps, of which some fall.",
        progress,
        (
            *(
                Effect(f"V5 over SFT, {d.value}", f"win rate of V5 over SFT, {d.value}", 0.6)
                for d in Domain
            ),
            *(
                Effect(f"V5 over V1, {d.value}", f"win rate of V5 over V1, {d.value}", 0.5)
                for d in Domain
            ),
        ),
        (
            Chart(
                "lines",
                {d.value: d.value for d in Domain},
                "version",
                "gold win rate over SFT",
                reference=0.5,
            ),
        ),
        weight=45,
    ),
    Finding(
        "j",
        "§3.2.3, Figure 11",
        "PPO on top of rejection sampling is better than rejection sampling alone.",
        "V5 before and after PPO on the same held-out prompts at T=1, by the gold judge.",
        ppo_on_top,
        tuple(
            Effect(f"gain, {d.value}", f"gold {d.value}, after PPO minus before") for d in Domain
        ),
        (
            Chart(
                "bars",
                {d.value: d.value for d in Domain},
                "model",
                "gold score",
            ),
        ),
        weight=2,
    ),
)
