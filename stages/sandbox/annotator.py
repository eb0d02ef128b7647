"""The simulated annotator: turns gold differences into noisy human-like choices (§3.2.1).

Every annotator perceives gold(a) - gold(b) plus logistic noise of scale tau and must choose, so
that P(chooses a) = sigmoid((gold_a - gold_b) / tau): the Bradley-Terry model with ties forbidden.
The size of the perceived difference gives the rating.

"Chosen unsafe, other safe" is not included in the paper. Here the annotator is shown such a pair
again (a fresh look, `max_looks` in all) and the comparison is dropped if it stays that way.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field

from data_contracts.base import Contract
from data_contracts.ratings import Domain, Rating, SafetyLabel
from stages.sandbox.judge import Verdict, gold_scores

HELPFULNESS_TIE_BREAK: Final = 0.35
"""Weight of helpfulness in the safety guideline: of two safe answers choose the helpful one. Else
the pairs of harmless prompts would be coin flips and the Safety RM would not learn to like answers.
"""


class AnnotatorSettings(Contract):
    """How the pool of simulated annotators behaves."""

    noise: float = Field(default=0.12, gt=0)
    """Scale tau of the logistic noise, in units of gold score."""
    spread: tuple[float, ...] = Field(default=(0.6, 0.8, 1.0, 1.25, 1.6), min_length=1)
    """One annotator per entry: multiplies the noise."""
    thresholds: tuple[float, float, float] = (0.45, 0.25, 0.10)
    """Perceived difference from which a choice is significantly, plainly, slightly better."""
    label_error: float = Field(default=0.02, ge=0, le=1)
    """Chance of taking one response's safety for its opposite."""
    max_looks: int = Field(default=3, ge=1)
    """Looks at a pair before a "chosen unsafe, other safe" one is dropped."""


@dataclass(frozen=True)
class _Look:
    """One look at a pair."""

    chooses_a: bool
    difference: float
    a_is_safe: bool
    b_is_safe: bool

    @property
    def label(self) -> SafetyLabel | None:
        """None is the excluded combination."""
        chosen, other = self.a_is_safe, self.b_is_safe
        if not self.chooses_a:
            chosen, other = other, chosen
        if chosen:
            return SafetyLabel.both_safe if other else SafetyLabel.chosen_safe_other_unsafe
        return None if other else SafetyLabel.both_unsafe


def annotate(
    comparison_rows: Sequence[Mapping[str, Any]],
    domain: Domain | str,
    settings: AnnotatorSettings,
    seed: int,
) -> list[dict[str, Any]]:
    """Label comparisons; rows have the keys of the comparisons contract.

    Returns each row's own keys and annotator, chosen, rejected, rating and safety_label (None in
    the helpfulness domain), in the order of the rows. Pairs that cannot be compared are
    left out: an empty response, two equal ones, or the excluded safety combination. Every row's
    noise comes from its comparison_id and the seed alone, whatever rows stand beside it.
    """
    labelled = (_annotate_row(row, Domain(domain), settings, seed) for row in comparison_rows)
    return [row for row in labelled if row is not None]


def perceived_gold(verdict: Verdict, domain: Domain) -> float:
    """The gold score a domain's guideline asks annotators to look at."""
    if domain is Domain.helpfulness:
        return verdict.helpfulness
    return verdict.safety + HELPFULNESS_TIE_BREAK * verdict.helpfulness


def _annotate_row(
    row: Mapping[str, Any], domain: Domain, settings: AnnotatorSettings, seed: int
) -> dict[str, Any] | None:
    response_a, response_b = row["response_a"], row["response_b"]
    if not response_a.strip() or not response_b.strip() or response_a == response_b:
        return None
    rng = random.Random(f"{seed}/{row['comparison_id']}")
    person = rng.randrange(len(settings.spread))
    verdicts = [
        gold_scores(row["messages"], text, row.get("category")) for text in (response_a, response_b)
    ]
    look = _look_until_allowed(verdicts[0], verdicts[1], domain, settings, person, rng)
    if look is None:
        return None
    chosen, rejected = (response_a, response_b) if look.chooses_a else (response_b, response_a)
    label = look.label if domain is Domain.safety else None
    return {
        **row,
        "annotator": f"simulated-{person + 1}",
        "chosen": chosen,
        "rejected": rejected,
        "rating": rating_of(look.difference, settings.thresholds).value,
        "safety_label": None if label is None else label.value,
    }


def rating_of(difference: float, thresholds: Sequence[float]) -> Rating:
    """Grade of a perceived difference of either sign."""
    for rating, threshold in zip(Rating, thresholds, strict=False):
        if abs(difference) >= threshold:
            return rating
    return Rating.negligibly_better


def _look_until_allowed(
    a: Verdict,
    b: Verdict,
    domain: Domain,
    settings: AnnotatorSettings,
    person: int,
    rng: random.Random,
) -> _Look | None:
    tau = settings.noise * settings.spread[person]
    gap = perceived_gold(a, domain) - perceived_gold(b, domain)
    for _ in range(settings.max_looks):
        difference = gap + tau * _logistic(rng)
        safe = [verdict.is_safe != (rng.random() < settings.label_error) for verdict in (a, b)]
        look = _Look(difference > 0, difference, safe[0], safe[1])
        if domain is Domain.helpfulness or look.label is not None:
            return look
    return None


def _logistic(rng: random.Random) -> float:
    """A draw from the standard logistic distribution."""
    uniform = min(max(rng.random(), 1e-12), 1 - 1e-12)
    return math.log(uniform / (1 - uniform))
