"""What a lead looks at: agreement, distributions, quality checks, Table 6.

Every figure is a plain function of judgements, so that a notebook can ask the same questions.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Any

from sqlalchemy import select, true
from sqlalchemy.orm import Session

from annotation.storage.schema import Entry, Item, Pick, SlotPurpose, User
from annotation.work_queue import current_labels
from data_contracts.ratings import Rating, SafetyLabel

PAPER_SAFETY_SHARES = {
    SafetyLabel.chosen_safe_other_unsafe: 0.18,
    SafetyLabel.both_safe: 0.47,
    SafetyLabel.both_unsafe: 0.35,
}
"""Of the paper's safety data (§3.2.1)."""

LONGEST_LOOK = timedelta(minutes=15)
"""A longer gap between two labels of one annotator is a pause, no work on an item."""


@dataclass(frozen=True)
class Judgement:
    """One standing label."""

    item_id: int
    comparison_id: str
    domain: str
    annotator: str
    """Pseudonym."""
    pick: str
    rating: str
    safety_label: str | None
    purpose: str
    gold_pick: str | None
    at: datetime

    @property
    def degree(self) -> int:
        """Place on the scale of eight: 0 is a significantly better, 7 is b significantly better."""
        strength = list(Rating).index(Rating(self.rating))
        return strength if self.pick == Pick.a else 7 - strength


def judgements(session: Session, week: int, user: User | None = None) -> list[Judgement]:
    """All standing labels of a batch, or one user's, in order of submission; none of items that
    were taken out."""
    whose = true() if user is None else Entry.user_id == user.id
    rows = session.execute(
        select(
            Item.id,
            Item.comparison_id,
            Item.domain,
            User.pseudonym,
            Entry.pick,
            Entry.rating,
            Entry.safety_label,
            Entry.purpose,
            Item.gold_pick,
            Entry.created_at,
        )
        .join_from(Entry, Item, Entry.item_id == Item.id)
        .join(User, Entry.user_id == User.id)
        .where(Item.week == week, ~Item.is_retired, current_labels(), whose)
        .order_by(Entry.id)
    )
    return [Judgement(*row) for row in rows]


# ---- disagreements -------------------------------------------------------------------------


def disagreements(labels: Sequence[Judgement]) -> dict[int, list[Judgement]]:
    """Items whose annotators chose different responses or safety labels, by item id."""
    by_item: dict[int, list[Judgement]] = defaultdict(list)
    for label in labels:
        if label.purpose == SlotPurpose.collect:
            by_item[label.item_id].append(label)
    return {
        item: found
        for item, found in by_item.items()
        if len({(label.pick, label.safety_label) for label in found}) > 1
    }


# ---- each annotator ----------------------------------------------------------------------------


@dataclass(frozen=True)
class AnnotatorRow:
    """One annotator's week."""

    annotator: str
    num_labels: int
    median_seconds: float | None
    """Between one label and the next, pauses left out."""
    num_gold: int
    num_gold_right: int
    num_repeats: int
    num_repeats_same: int


def by_annotator(labels: Sequence[Judgement]) -> list[AnnotatorRow]:
    """Throughput and quality of every annotator, by pseudonym."""
    names = sorted({label.annotator for label in labels})
    return [annotator_row(name, [x for x in labels if x.annotator == name]) for name in names]


def annotator_row(name: str, own: Sequence[Judgement]) -> AnnotatorRow:
    """One annotator's week, from their own labels."""
    gold = [label for label in own if label.purpose == SlotPurpose.gold]
    first = {x.item_id: x.pick for x in own if x.purpose == SlotPurpose.collect}
    again = [x for x in own if x.purpose == SlotPurpose.repeat and x.item_id in first]
    return AnnotatorRow(
        annotator=name,
        num_labels=sum(label.purpose == SlotPurpose.collect for label in own),
        median_seconds=_median_seconds(own),
        num_gold=len(gold),
        num_gold_right=sum(label.pick == label.gold_pick for label in gold),
        num_repeats=len(again),
        num_repeats_same=sum(label.pick == first[label.item_id] for label in again),
    )


def _median_seconds(own: Sequence[Judgement]) -> float | None:
    # labels of another tool come in as its file has them, not in the order of their times
    gaps = [b - a for a, b in pairwise(sorted(label.at for label in own))]
    looks = [gap.total_seconds() for gap in gaps if gap <= LONGEST_LOOK]
    return median(looks) if looks else None


# ---- distributions and Table 6 -----------------------------------------------------------------


def shares(labels: Iterable[Judgement], column: str) -> dict[str, float]:
    """Share of each rating or safety label among collected labels that have one."""
    kinds: dict[str, Any] = {"rating": Rating, "safety_label": SafetyLabel}
    found = Counter(
        getattr(label, column)
        for label in labels
        if label.purpose == SlotPurpose.collect and getattr(label, column)
    )
    total = found.total()
    return {kind.value: found[kind.value] / total if total else 0.0 for kind in kinds[column]}


@dataclass(frozen=True)
class Table6Row:
    """Statistics of one source (Table 6) or one weekly batch (Table 26)."""

    name: str
    num_comparisons: int
    mean_turns: float
    """User messages of a dialogue, the last one included."""
    mean_tokens_per_example: float
    """Prompt and one response, averaged over both responses."""
    mean_tokens_in_prompt: float
    mean_tokens_in_response: float


def table_6(
    rows: Iterable[Mapping[str, Any]],
    by: str,
    count_tokens: Callable[[str], int] = lambda text: len(text.split()),
) -> list[Table6Row]:
    """Statistics of preferences rows, grouped by a column ("source", "batch"), and the total.

    Without a tokenizer's own count, a token is a word.
    """
    groups: dict[Any, list[tuple[int, int, float]]] = defaultdict(list)
    for row in rows:
        turns = sum(message["role"] == "user" for message in row["messages"])
        prompt = sum(count_tokens(message["content"]) for message in row["messages"])
        response = (count_tokens(row["chosen"]) + count_tokens(row["rejected"])) / 2
        groups[row[by]].append((turns, prompt, response))
    table = [_table_6_row(str(key), groups[key]) for key in sorted(groups)]
    everything = [figures for group in groups.values() for figures in group]
    return [*table, _table_6_row("total", everything)] if everything else []


def _table_6_row(name: str, figures: Sequence[tuple[int, int, float]]) -> Table6Row:
    turns, prompt, response = (sum(column) / len(figures) for column in zip(*figures, strict=True))
    return Table6Row(name, len(figures), turns, prompt + response, prompt, response)
