"""The closed vocabularies of preference data (§3.2.1) and the margins of Table 27."""

from enum import StrEnum
from typing import Literal


class Rating(StrEnum):
    """How much better the chosen response is, from the annotator's four choices."""

    significantly_better = "significantly_better"
    better = "better"
    slightly_better = "slightly_better"
    negligibly_better = "negligibly_better"
    """Negligibly better, or unsure."""


class SafetyLabel(StrEnum):
    """Which of the two responses are safe; a safe response is never the rejected one alone."""

    chosen_safe_other_unsafe = "chosen_safe_other_unsafe"
    both_safe = "both_safe"
    both_unsafe = "both_unsafe"


class Domain(StrEnum):
    """What the annotator was asked to judge."""

    helpfulness = "helpfulness"
    safety = "safety"


class Split(StrEnum):
    """The side a prompt is on, in every table (see `splits.split_of`)."""

    train = "train"
    validation = "validation"
    test = "test"


MarginKind = Literal["none", "small", "large"]

MARGINS: dict[MarginKind, dict[Rating, float]] = {
    "none": dict.fromkeys(Rating, 0.0),
    "small": dict(zip(Rating, (1.0, 2 / 3, 1 / 3, 0.0), strict=True)),
    "large": dict(zip(Rating, (3.0, 2.0, 1.0, 0.0), strict=True)),
}
"""Margin m(r) of the ranking loss, by kind and rating (Table 27)."""
