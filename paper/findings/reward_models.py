"""(a), (b), (c), (r): what reward models learn from data, and what their scores mean."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data_contracts.artifacts import ArtifactRef
from data_contracts.ratings import Domain, Rating
from paper import gold
from paper.finding import Chart, Effect, Estimate, Estimates, Finding, clustered, mean
from paper.lab import Lab
from paper.scale import MODEL_SIZES
from paper.stages.pair_scores import read_pairs

FRACTIONS = {"1/16": 1 / 16, "1/4": 1 / 4, "all": 1.0}
NUM_BINS = 3
MEASURING_BATCHES = (101, 102)
"""Numbers of weekly batches that are held out whole: no version has them."""
Pairs = list[dict[str, Any]]
Values = dict[tuple[str, str], float]
"""(prompt, pair) → a value."""


def pairs_of(lab: Lab, reward_model: ArtifactRef) -> Pairs:
    """Held-out pairs with a reward model's scores."""
    made = lab.made(
        "paper.stages.pair_scores", reward_model=reward_model, preferences=held_out(lab)
    )
    return read_pairs(lab.folder(made.outputs["pairs"]))


def held_out(lab: Lab) -> tuple[ArtifactRef, ...]:
    """The first batch, and others that are drawn like it and only measured on.

    Their held-out prompts are the same: the split goes by the prompt's text.
    """
    batches = [lab.output(1, "collect_preferences", "preferences")]
    for batch in MEASURING_BATCHES:
        comparisons = lab.varied(1, "sample_pairs", batch=batch).outputs["comparisons"]
        labelled = lab.varied(1, "collect_preferences", batch=batch, comparisons=comparisons)
        batches.append(labelled.outputs["preferences"])
    return tuple(batches)


def right(pairs: Iterable[dict[str, Any]], domain: Domain | None = None) -> Values:
    """Pair → 1 where the chosen side has the higher score."""
    return {
        (pair["prompt_id"], pair["preference_id"]): float(
            pair["chosen_score"] > pair["rejected_score"]
        )
        for pair in pairs
        if domain is None or pair["domain"] == domain
    }


def accuracy(pairs: Iterable[dict[str, Any]], domain: Domain | None = None) -> Estimate:
    """Share of pairs ranked as people did."""
    return clustered(right(pairs, domain))


# ---- (a) data and size


def data_and_size(lab: Lab) -> Estimates:
    """The Helpfulness RM on parts of the data, and on smaller models with all of it."""
    estimates, models = {}, {}
    for name, fraction in FRACTIONS.items():
        models[f"data/{name}"] = with_data(lab, fraction)
    for name in MODEL_SIZES:
        models[f"size/{name}"] = with_size(lab, name)
    models["size/large"] = models["data/all"]
    scored = {name: pairs_of(lab, model) for name, model in models.items()}
    for name, pairs in scored.items():
        estimates[name] = accuracy(pairs, Domain.helpfulness)
    estimates["more data"] = gain(scored["data/all"], scored["data/1/16"])
    estimates["larger model"] = gain(scored["size/large"], scored["size/small"])
    return estimates


def gain(own: Pairs, other: Pairs, domain: Domain | None = Domain.helpfulness) -> Estimate:
    """Accuracy of one model minus another's, pair by pair."""
    ours, theirs = right(own, domain), right(other, domain)
    return clustered({pair: ours[pair] - theirs[pair] for pair in ours})


def with_data(lab: Lab, fraction: float) -> ArtifactRef:
    """The Helpfulness RM on a part of the own and of the open-source pairs."""
    if fraction == 1:
        return lab.output(1, "reward_model-helpfulness")
    own, open_pairs = (
        lab.made("paper.stages.choose", table=table, fraction=fraction).outputs["table"]
        for table in (
            lab.output(1, "collect_preferences", "preferences"),
            lab.output(0, "ingest", "open_preferences"),
        )
    )
    made = lab.varied(
        1, "reward_model-helpfulness", preferences=(own,), open_preferences=open_pairs
    )
    return made.outputs["model"]


def with_size(lab: Lab, size: str) -> ArtifactRef:
    """The Helpfulness RM made from a smaller chat model."""
    made = lab.varied(1, "reward_model-helpfulness", init_from=small_chat_model(lab, size))
    return made.outputs["model"]


def small_chat_model(lab: Lab, size: str) -> ArtifactRef:
    """A smaller model, pretrained and fine-tuned as the large one."""
    base = lab.varied(0, "pretrain", model=MODEL_SIZES[size]).outputs["model"]
    return lab.varied(0, "sft", init_from=base).outputs["model"]


# ---- (b) each best on its own set


def cross(lab: Lab) -> Estimates:
    """Both reward models on both held-out sets."""
    scored = {domain: pairs_of(lab, rm(lab, domain)) for domain in Domain}
    estimates = {
        f"{model}/{test_set}": accuracy(scored[model], test_set)
        for model in Domain
        for test_set in Domain
    }
    for own, other in ((Domain.helpfulness, Domain.safety), (Domain.safety, Domain.helpfulness)):
        estimates[f"own set, {own}"] = gain(scored[own], scored[other], own)
    return estimates


def rm(lab: Lab, domain: Domain) -> ArtifactRef:
    """The first version's reward model of a domain."""
    return lab.output(1, f"reward_model-{domain.value}")


# ---- (c) by rating


def by_rating(lab: Lab) -> Estimates:
    """Accuracy of each model on its own set by rating, and from one grade to the next."""
    estimates: Estimates = {}
    outcomes: dict[Rating, Values] = {rating: {} for rating in Rating}
    for domain in Domain:
        pairs = [p for p in pairs_of(lab, rm(lab, domain)) if p["domain"] == domain]
        for rating in Rating:
            found = right(p for p in pairs if p["rating"] == rating)
            estimates[f"{domain}/{rating.value.replace('_', ' ')}"] = clustered(found)
            outcomes[rating] |= found
    grades = [clustered(outcomes[rating]) for rating in Rating]
    for i, name in enumerate(("first step", "second step", "third step")):
        estimates[name] = grades[i] - grades[i + 1]
    return estimates


# ---- (r) calibration


def calibration(lab: Lab) -> Estimates:
    """Mean gold score of responses in bins of equally many by reward-model score (Figure 29)."""
    estimates: Estimates = {}
    for domain in Domain:
        scores, golds = scored_responses(lab, domain)
        bins = np.array_split(np.argsort(scores), NUM_BINS)
        levels = [mean([golds[i] for i in members]) for members in bins]
        for i, level in enumerate(levels):
            estimates[f"{domain}/{('low', 'middle', 'high')[i]}"] = level
        for i in range(NUM_BINS - 1):
            estimates[f"{domain}, step {i + 1}"] = levels[i + 1] - levels[i]
    return estimates


def scored_responses(lab: Lab, domain: Domain) -> tuple[Sequence[float], Sequence[float]]:
    """Reward-model score and gold score of the SFT model's answers to held-out prompts."""
    rows = [row for row in gold.answers(lab, lab.sft, num_samples=1) if row["domain"] == domain]
    return [row[f"{domain}_score"] for row in rows], [gold.gold_of(row) for row in rows]


FINDINGS = (
    Finding(
        "a",
        "Figure 6",
        "Reward-model accuracy rises with the amount of data and with the size of the model.",
        "The Helpfulness RM on 1/16, 1/4 and all pairs, and on chat models of 3 sizes with all "
        "pairs; accuracy on the same held-out pairs. Tested are the ends of both curves.",
        data_and_size,
        (
            Effect("more data", "accuracy with all pairs minus with 1/16 of them"),
            Effect("larger model", "accuracy of the large model minus the small one's"),
        ),
        (
            Chart("lines", {"large model": "data"}, "share of the pairs", "accuracy"),
            Chart("lines", {"all pairs": "size"}, "size of the model", "accuracy"),
        ),
        takes_long=True,
        weight=9,
    ),
    Finding(
        "b",
        "Table 7",
        "Each reward model is the better one on its own domain's test set.",
        "Both models of V1 on the held-out pairs of both domains, pair by pair.",
        cross,
        tuple(
            Effect(f"own set, {d.value}", f"accuracy on {d.value} pairs: own model minus the other")
            for d in Domain
        ),
        (
            Chart(
                "bars",
                {f"{d.value} RM": d.value for d in Domain},
                "test set",
                "accuracy",
                reference=0.5,
            ),
        ),
    ),
    Finding(
        "c",
        "Table 8",
        "Accuracy falls from pairs rated “significantly better” to “negligibly better / unsure”.",
        "Both models of V1, each on its own held-out pairs, by the annotators' rating.",
        by_rating,
        (
            Effect("first step", "accuracy, significantly better minus better"),
            Effect("second step", "accuracy, better minus slightly better"),
            Effect("third step", "accuracy, slightly better minus negligibly better"),
        ),
        (
            Chart(
                "lines",
                {f"{d.value} RM": d.value for d in Domain},
                "rating",
                "accuracy",
                reference=0.5,
            ),
        ),
    ),
    Finding(
        "r",
        "Figure 29",
        "A reward model's score agrees with the quality of the response.",
        "Answers of the SFT model to held-out prompts in three equal bins by score; the gold score "
        "must rise from bin to bin.",
        calibration,
        tuple(
            Effect(f"{d.value}, step {i}", f"gold {d.value}, bin {i + 1} minus bin {i}")
            for d in Domain
            for i in (1, 2)
        ),
        (Chart("lines", {f"{d.value} RM": d.value for d in Domain}, "score bin", "gold score"),),
    ),
)
