"""How far the annotators of a batch agree, as a lead sees it.

Apart from `statistics`, which every annotator's page asks: the coefficients bring numpy and scipy
with them, and the page comes back sooner without.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from annotation.agreement import Agreement, gwet
from annotation.statistics import Judgement
from annotation.storage.schema import Pick, SlotPurpose
from data_contracts.ratings import SafetyLabel


@dataclass(frozen=True)
class AgreementTable:
    """Agreement between annotators on items that several of them labelled."""

    choice: Agreement | None
    """AC1 of which response was chosen."""
    degree: Agreement | None
    """AC2 (ordinal weights) of choice and rating on the scale of eight."""
    safety_label: Agreement | None
    """AC1 of the safety label."""
    pairs: list[tuple[str, str, Agreement]]
    """AC1 of the choice for each two annotators."""


def agreement(labels: Sequence[Judgement]) -> AgreementTable:
    """Agreement over the labels that were collected, checks left out."""
    collected = [label for label in labels if label.purpose == SlotPurpose.collect]
    choice = _by_item(collected, lambda label: list(Pick).index(Pick(label.pick)))
    degree = _by_item(collected, lambda label: label.degree)
    safety = _by_item(
        [label for label in collected if label.safety_label],
        lambda label: list(SafetyLabel).index(SafetyLabel(label.safety_label or "")),
    )
    return AgreementTable(
        choice=gwet(_ratings(choice), 2),
        degree=gwet(_ratings(degree), 8, "ordinal"),
        safety_label=gwet(_ratings(safety), 3),
        pairs=_pairs(choice),
    )


def _by_item(
    labels: Iterable[Judgement], category: Callable[[Judgement], int]
) -> dict[int, dict[str, int]]:
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for label in labels:
        found[label.item_id][label.annotator] = category(label)
    return found


def _ratings(by_item: Mapping[int, Mapping[str, int]]) -> list[list[int]]:
    return [list(by_annotator.values()) for by_annotator in by_item.values()]


def _pairs(by_item: Mapping[int, Mapping[str, int]]) -> list[tuple[str, str, Agreement]]:
    shared: dict[tuple[str, str], list[list[int]]] = defaultdict(list)
    for ratings in by_item.values():
        for first, second in combinations(sorted(ratings), 2):
            shared[first, second].append([ratings[first], ratings[second]])
    found = [(*pair, gwet(shared[pair], 2)) for pair in sorted(shared)]
    return [(first, second, value) for first, second, value in found if value is not None]
