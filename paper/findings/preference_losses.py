"""(d), (e): the margin in the ranking loss, and the auxiliary loss on the safety label."""

from typing import Any

import numpy as np

from data_contracts.artifacts import ArtifactRef
from data_contracts.ratings import MARGINS, Domain, Rating, SafetyLabel
from paper.finding import Chart, Effect, Estimate, Estimates, Finding, clustered
from paper.findings.reward_models import Pairs, Values, accuracy, gain, pairs_of
from paper.lab import Lab

CLEAR = (Rating.significantly_better, Rating.better)


# ---- (d) margin


def margins(lab: Lab) -> Estimates:
    """Both reward models with each margin; accuracy on clear pairs and on all of them."""
    scored = {kind: clear_and_all(lab, kind) for kind in MARGINS}
    estimates: Estimates = {}
    for kind, (clear, everything) in scored.items():
        estimates[f"clear/{kind}"] = accuracy(clear)
        estimates[f"all/{kind}"] = accuracy(everything)
    without = scored["none"][0]
    for kind in ("small", "large"):
        estimates[f"{kind}, clear pairs"] = gain(scored[kind][0], without, None)
        estimates[f"{kind}, all pairs"] = gain(scored[kind][1], scored["none"][1], None)
    return estimates


def clear_and_all(lab: Lab, kind: str) -> tuple[Pairs, Pairs]:
    """Held-out pairs of both domains, each with its own model's scores."""
    everything = [
        pair
        for domain in Domain
        for pair in pairs_of(lab, with_margin(lab, domain, kind))
        if pair["domain"] == domain
    ]
    return [pair for pair in everything if pair["rating"] in CLEAR], everything


def with_margin(lab: Lab, domain: Domain, kind: str) -> ArtifactRef:
    """The first version's reward model, trained with a margin of this kind."""
    return lab.varied(1, f"reward_model-{domain.value}", margin=kind).outputs["model"]


# ---- (e) auxiliary loss


def auxiliary(lab: Lab) -> Estimates:
    """The Safety RM with and without the auxiliary loss (Table 29)."""
    weights = {"without": 0.0, "with": 1.0}
    scored = {name: safety_pairs(lab, weight) for name, weight in weights.items()}
    estimates: Estimates = {}
    told = {name: told_apart(pairs) for name, pairs in scored.items()}
    level = level_that_passes(scored["without"], clustered(told["with"][True]).value)
    as_lenient = told_apart(scored["without"], level)
    for name, pairs in scored.items():
        estimates[f"accuracy/{name}"] = accuracy(pairs)
        for side in (False, True):
            kind = "safe" if side else "unsafe"
            estimates[f"{kind} responses/{name}"] = clustered(told[name][side])
    estimates["unsafe responses/without, as lenient"] = clustered(as_lenient[False])
    estimates["recall of unsafe"] = difference(told["with"][False], as_lenient[False])
    estimates["both kinds"] = balanced(told["with"]) - balanced(told["without"])
    return estimates


def safety_pairs(lab: Lab, weight: float) -> Pairs:
    """The held-out safety pairs with the scores of a Safety RM of this auxiliary weight."""
    made = lab.varied(1, "reward_model-safety", safety_auxiliary_weight=weight)
    pairs = pairs_of(lab, made.outputs["model"])
    return [pair for pair in pairs if pair["domain"] == Domain.safety]


def told_apart(pairs: Pairs, level: float = 0.0) -> dict[bool, Values]:
    """Safe and unsafe responses, by the annotators' label: 1 where the score is on their side.

    Table 29 calls a response unsafe whose score is below 0, σ(score) below 0.5.
    """
    found: dict[bool, Values] = {True: {}, False: {}}
    for pair in pairs:
        for side, is_safe in sides(pair):
            says_safe = pair[f"{side}_score"] > level
            response = (pair["prompt_id"], f"{pair['preference_id']}/{side}")
            found[is_safe][response] = float(says_safe == is_safe)
    return found


def level_that_passes(pairs: Pairs, share: float) -> float:
    """The score above which this share of the safe responses lies.

    The ranking loss leaves the level of a score free: a model that puts all responses below 0
    recalls every unsafe one and says nothing. So recall is compared where both models take as many
    safe responses for unsafe.
    """
    safe = [pair[f"{side}_score"] for pair in pairs for side, is_safe in sides(pair) if is_safe]
    return float(np.quantile(safe, 1 - share))


def sides(pair: dict[str, Any]) -> tuple[tuple[str, bool], tuple[str, bool]]:
    """Which side is safe, by the label."""
    label = pair["safety_label"]
    return (
        ("chosen", label != SafetyLabel.both_unsafe),
        ("rejected", label == SafetyLabel.both_safe),
    )


def difference(own: Values, other: Values) -> Estimate:
    """Mean of own − other, response by response."""
    return clustered({key: own[key] - other[key] for key in own})


def balanced(told: dict[bool, Values]) -> Estimate:
    """Mean of the shares told right among safe and among unsafe responses."""
    safe, unsafe = (clustered(told[side]) for side in (True, False))
    return Estimate((safe.value + unsafe.value) / 2, (safe.error**2 + unsafe.error**2) ** 0.5 / 2)


FINDINGS = (
    Finding(
        "d",
        "Table 28",
        "A margin by rating in the ranking loss helps where the two responses are clearly apart.",
        "Both reward models of V1 with no, the small and the large margin of Table 27; accuracy on "
        "held-out pairs rated better or significantly better, pair by pair against no margin.",
        margins,
        (Effect("large, clear pairs", "accuracy on clear pairs, large margin minus none"),),
        (Chart("bars", {"clear pairs": "clear", "all pairs": "all"}, "margin", "accuracy"),),
        takes_long=True,
        weight=9,
    ),
    Finding(
        "e",
        "Table 29",
        "The auxiliary loss on the safety label lets the Safety RM recognise unsafe responses.",
        "The Safety RM of V1 with and without it; a response counts as unsafe where σ(score) is "
        "below 0.5, as in the paper. The ranking loss alone leaves the level of a score free, so "
        "recall is compared at the level where it passes as many safe responses.",
        auxiliary,
        (
            Effect(
                "recall of unsafe", "unsafe responses recognised, with minus as lenient without"
            ),
            Effect("both kinds", "mean over safe and unsafe responses told right, with − without"),
        ),
        (
            Chart(
                "bars",
                {
                    "pairs ranked right": "accuracy",
                    "unsafe recognised": "unsafe responses",
                    "safe recognised": "safe responses",
                },
                "auxiliary loss",
                "share",
            ),
        ),
        weight=5,
    ),
)
