"""Gwet's agreement coefficients AC1 and AC2, with intervals (§3.4; Gwet 2008, 2014).

Several raters, missing ratings allowed. AC1 treats every disagreement alike, AC2 weighs it by its
distance. The figures equal those of the packages irrCAC (R and Python).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

Weights = Literal["identity", "ordinal", "quadratic"]


@dataclass(frozen=True)
class Agreement:
    """A chance-corrected agreement coefficient and its 95 % interval over subjects."""

    coefficient: float
    low: float
    high: float
    percent_agreement: float
    num_subjects: int
    """Subjects that two raters or more have rated."""


def gwet(
    ratings: Sequence[Sequence[int]], num_categories: int, weights: Weights = "identity"
) -> Agreement | None:
    """Agreement over subjects; `ratings[i]` are the categories 0..n-1 that subject i received.

    `identity` gives AC1, the others AC2. None when fewer than two subjects have two ratings: there
    is no interval then.
    """
    counts = np.zeros((len(ratings), num_categories))
    for subject, categories in enumerate(ratings):
        for category in categories:
            counts[subject, category] += 1
    counts = counts[counts.sum(1) > 0]
    num_ratings = counts.sum(1)
    is_paired = num_ratings >= 2
    if is_paired.sum() < 2:
        return None
    weight = weight_matrix(num_categories, weights)
    return _coefficient(counts, num_ratings, is_paired, weight)


def _coefficient(
    counts: np.ndarray, num_ratings: np.ndarray, is_paired: np.ndarray, weight: np.ndarray
) -> Agreement:
    """counts [subjects, categories]; the variance is Gwet's linearised one."""
    num_subjects, num_categories = counts.shape
    weighted = counts @ weight.T
    pairs = np.where(is_paired, num_ratings * (num_ratings - 1), 1)
    observed = np.where(is_paired, (counts * (weighted - 1)).sum(1) / pairs, 0.0)
    by_chance_scale = weight.sum() / (num_categories * (num_categories - 1))
    prevalence = (counts / num_ratings[:, None]).mean(0)
    percent = observed.sum() / is_paired.sum()
    by_chance = by_chance_scale * (prevalence * (1 - prevalence)).sum()
    if by_chance >= 1:
        return Agreement(math.nan, math.nan, math.nan, float(percent), int(is_paired.sum()))
    value = (percent - by_chance) / (1 - by_chance)

    per_subject = (num_subjects / is_paired.sum()) * (observed - by_chance * is_paired)
    per_subject = per_subject / (1 - by_chance)
    chance = by_chance_scale * (counts @ (1 - prevalence)) / num_ratings
    influence = per_subject - 2 * (1 - value) * (chance - by_chance) / (1 - by_chance)
    variance = ((influence - value) ** 2).sum() / (num_subjects * (num_subjects - 1))
    margin = float(special.stdtrit(num_subjects - 1, 0.975)) * math.sqrt(variance)
    return Agreement(
        float(value),
        max(float(value) - margin, -1.0),
        min(float(value) + margin, 1.0),
        float(percent),
        int(is_paired.sum()),
    )


def weight_matrix(num_categories: int, weights: Weights) -> np.ndarray:
    """Credit for a pair of ratings, 1 on the diagonal [categories, categories]."""
    distance = np.abs(np.subtract.outer(np.arange(num_categories), np.arange(num_categories)))
    if weights == "identity":
        return (distance == 0).astype(float)
    if weights == "quadratic":
        return 1 - (distance / (num_categories - 1)) ** 2
    between = (distance + 1) * distance / 2  # pairs of categories from one to the other
    return 1 - between / between.max()
