"""A weekly batch: published from comparisons, worked on, delivered as preferences.

A label is delivered once, with the batch in which its week's delivery finds it. What comes in
after that (an annotator was at it, the batch was re-opened) goes out with the next delivery.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from annotation.labelling import as_typed, is_delivered, without_nul
from annotation.refusals import NotThereError
from annotation.storage.database import measure_queue
from annotation.storage.schema import (
    AuditEntry,
    Batch,
    BatchState,
    Delivery,
    Entry,
    EntryKind,
    Item,
    Pick,
    Slot,
    SlotPurpose,
    SlotState,
)
from annotation.work_queue import is_uncorrected, new_slot
from data_contracts.base import Contract
from data_contracts.errors import UserError
from data_contracts.splits import opening, split_of

T = TypeVar("T")

_COMMAND_LINE = "command line"
"""Actor in the audit log of what no user of the page did."""
_IDS_A_QUERY = 900
"""SQLite before 3.32 takes 999 parameters."""


class BatchPlan(Contract):
    """How a batch is worked on."""

    overlap: int = 1
    """Annotators who label each item."""
    check_every: int = 10
    """Every n-th item of an annotator measures quality: gold, or an own one again. 0 for none."""
    deadline: datetime | None = None
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a batch is, in labels."""

    week: int
    state: str
    num_wanted: int
    num_done: int
    num_held: int
    deadline: datetime | None

    @property
    def share(self) -> float:
        """Done, of wanted."""
        return self.num_done / self.num_wanted if self.num_wanted else 1.0

    def is_ready(self, quorum: float, now: datetime) -> bool:
        """Whether the next phase may start: all done, or the deadline past with the quorum met."""
        if self.num_done >= self.num_wanted:
            return True
        return self.deadline is not None and now >= self.deadline and self.share >= quorum


def publish(
    session: Session,
    week: int,
    comparisons: Iterable[Mapping[str, Any]],
    plan: BatchPlan,
    now: datetime,
    gold: Mapping[str, Pick] | None = None,
) -> int:
    """Put comparisons up for labelling; returns how many are new.

    Rows that are there already, in whichever week, stay as they are, so publishing again is safe:
    what is delivered are the texts that were labelled. New rows open a closed week again, until
    the plan's deadline. `gold` names the right choice by comparison id: such an item checks
    annotators and is never delivered.
    """
    batch = session.get(Batch, week)
    if batch is None:
        batch = Batch(
            week=week,
            state=BatchState.open,
            overlap=plan.overlap,
            check_every=plan.check_every,
            deadline=plan.deadline,
            created_at=now,
        )
        session.add(batch)
        session.flush()
    rows = sorted(comparisons, key=lambda row: row["comparison_id"])
    known = set(session.scalars(select(Item.comparison_id)))
    new = [row for row in rows if row["comparison_id"] not in known]
    random.Random(f"{plan.seed}/{week}").shuffle(new)
    first = session.scalar(select(func.max(Item.position)).where(Item.week == week)) or 0
    for position, row in enumerate(new, start=first + 1):
        session.add_all(_item_with_slots(batch, position, row, (gold or {})))
    if new and batch.state == BatchState.closed:
        batch.deadline = plan.deadline
        set_state(session, week, BatchState.open, now)
    measure_queue(session)
    session.add(_audit(now, "publish", f"batch {week}, {len(new)} items"))
    return len(new)


def items_named(session: Session, comparison_ids: Sequence[str]) -> dict[str, Item]:
    """The items that there are of these comparisons, by comparison id, in whichever week."""
    found: dict[str, Item] = {}
    for some in pieces(comparison_ids):
        items = session.scalars(select(Item).where(Item.comparison_id.in_(some)))
        found |= {item.comparison_id: item for item in items}
    return found


def pieces(ids: Sequence[T]) -> Iterator[Sequence[T]]:
    """As many ids at a time as any database takes in one query."""
    for start in range(0, len(ids), _IDS_A_QUERY):
        yield ids[start : start + _IDS_A_QUERY]


def refuse_other_texts(rows: Iterable[Mapping[str, Any]], known: Mapping[str, Item]) -> None:
    """Raise UserError where an id of a user's file is there already with other texts: whoever gave
    the file would take the labels for labels of his texts. `known` is of `items_named`."""
    for row in rows:
        item = known.get(row["comparison_id"])
        if item and _texts(row) != (item.messages, item.response_a, item.response_b):
            raise UserError(
                f"Comparison {item.comparison_id} is in week {item.week} already, with other texts",
                "Give each comparison an id of its own, or publish the texts that are there",
            )


def _texts(row: Mapping[str, Any]) -> tuple[list[dict[str, str]], str, str]:
    """What an annotator reads of a row, as the database keeps it: dialogue and responses."""
    messages = [
        {"role": said["role"], "content": without_nul(said["content"])} for said in row["messages"]
    ]
    return messages, without_nul(row["response_a"]), without_nul(row["response_b"])


def _item_with_slots(
    batch: Batch, position: int, row: Mapping[str, Any], gold: Mapping[str, Pick]
) -> list[Item | Slot]:
    item = new_item(batch.week, position, row, gold.get(row["comparison_id"]))
    overlap = 0 if item.gold_pick else batch.overlap  # gold slots are made for whoever is due
    return [item, *(new_slot(item, number) for number in range(1, overlap + 1))]


def new_item(week: int, position: int, row: Mapping[str, Any], gold_pick: Pick | None) -> Item:
    """An item from a row of the comparisons table."""
    messages, response_a, response_b = _texts(row)
    return Item(
        comparison_id=row["comparison_id"],
        week=week,
        position=position,
        prompt_id=row["prompt_id"],
        domain=row["domain"],
        category=row["category"] and without_nul(row["category"]),
        messages=messages,
        response_a=response_a,
        response_b=response_b,
        model_a=row["model_a"],
        model_b=row["model_b"],
        temperature_a=row["temperature_a"],
        temperature_b=row["temperature_b"],
        gold_pick=gold_pick,
        is_retired=False,
    )


def open_batch(session: Session) -> Batch | None:
    """The newest batch that hands out work."""
    return session.scalars(
        select(Batch).where(Batch.state == BatchState.open).order_by(Batch.week.desc()).limit(1)
    ).one_or_none()


def get_batch(session: Session, week: int) -> Batch:
    """A batch by its week, locked; raises NotThereError."""
    batch = session.get(Batch, week, with_for_update={"key_share": True})
    if batch is None:
        raise _no_batch(week)
    return batch


def _no_batch(week: int) -> NotThereError:
    return NotThereError(f"There is no batch {week}", "Publish it: rlhf annotations publish")


def set_state(
    session: Session, week: int, state: BatchState, now: datetime, actor: str = _COMMAND_LINE
) -> None:
    """Close or re-open a batch."""
    get_batch(session, week).state = state
    session.add(_audit(now, f"batch {state}", f"batch {week}", actor))


def progress(session: Session, week: int) -> Progress:
    """How far a batch is; raises NotThereError."""
    batch = session.get(Batch, week)
    if batch is None:
        raise _no_batch(week)
    counts: dict[str, int] = {}
    for state, count in session.execute(
        select(Slot.state, func.count(Slot.id))
        .where(Slot.week == week, Slot.purpose == SlotPurpose.collect)
        .where(Slot.state != SlotState.retired)
        .group_by(Slot.state)
    ):
        counts[state] = count
    return Progress(
        week,
        batch.state,
        sum(counts.values()),
        counts.get(SlotState.done, 0),
        counts.get(SlotState.held, 0),
        batch.deadline,
    )


# ---- delivery --------------------------------------------------------------------------------


def deliver(session: Session, week: int, now: datetime) -> list[Entry]:
    """Close a batch and fix what goes out with it; again, it adds what has come in since.

    Returns all entries of the delivery, in order of submission.
    """
    get_batch(session, week).state = BatchState.closed
    # nobody takes a label back while it goes out; see `labelling.undo`
    earlier = select(Batch.week).where(Batch.week <= week).order_by(Batch.week)
    session.execute(earlier.with_for_update(key_share=True))
    for entry in standing(session, week):
        session.add(Delivery(label_id=entry.id, week=week, delivered_at=now))
    session.add(_audit(now, "deliver", f"batch {week}"))
    session.flush()
    return delivered(session, week)


def delivered(session: Session, week: int) -> list[Entry]:
    """What has gone out with a batch, in order of submission."""
    return list(
        session.scalars(
            select(Entry)
            .join(Delivery, Delivery.label_id == Entry.id)
            .where(Delivery.week == week)
            .order_by(Entry.id)
        )
    )


def all_delivered(session: Session, test_fraction: float) -> list[dict[str, Any]]:
    """Preference rows of every delivery so far, week after week."""
    return [
        row
        for week in session.scalars(select(Batch.week).order_by(Batch.week)).all()
        for row in preference_rows(delivered(session, week), week, test_fraction)
    ]


def standing(session: Session, week: int) -> list[Entry]:
    """Standing labels up to this week that are for delivery. An adjudication replaces labels for
    good, also after it has gone out itself."""
    decision = aliased(Entry)
    is_decided = exists().where(
        decision.item_id == Entry.item_id, decision.kind == EntryKind.adjudication
    )
    is_label = and_(Entry.kind == EntryKind.label, ~is_decided)
    return list(
        session.scalars(
            select(Entry)
            .join(Item, Entry.item_id == Item.id)
            .where(or_(is_label, Entry.kind == EntryKind.adjudication), is_uncorrected())
            .where(Entry.purpose == SlotPurpose.collect)
            .where(Item.week <= week, ~Item.is_retired, ~is_delivered())
            .order_by(Entry.id)
        )
    )


def preference_rows(
    entries: Iterable[Entry], week: int, test_fraction: float
) -> list[dict[str, Any]]:
    """Rows of the preferences contract; annotators by pseudonym, the split by prompt.

    An item that the lead decided has the decision alone, also where its labels had gone out with
    the week before that. An edited response is a second row: the edit was preferred to the chosen
    response. One that is a copy of either response says nothing.
    """
    rows = []
    for entry in _as_decided(list(entries)):
        row = _preference_row(entry, week, test_fraction)
        rows.append(row)
        copies = {_plain(row["chosen"]), _plain(row["rejected"])}
        if entry.edited_response and _plain(entry.edited_response) not in copies:
            rows.append(_edit_row(row, entry.edited_response))
    return rows


def _as_decided(entries: Sequence[Entry]) -> list[Entry]:
    """Entries without those in whose place the last decision on their item stands."""
    decisions = {e.item_id: e.id for e in entries if e.kind == EntryKind.adjudication}
    return [entry for entry in entries if decisions.get(entry.item_id, entry.id) == entry.id]


def _preference_row(entry: Entry, week: int, test_fraction: float) -> dict[str, Any]:
    item = entry.item
    chosen, rejected = item.response_a, item.response_b
    if entry.pick == Pick.b:
        chosen, rejected = rejected, chosen
    return {
        "preference_id": f"{item.comparison_id}-{_origin(entry)}",
        "prompt_id": item.prompt_id,
        "domain": item.domain,
        "source": "annotation",
        "batch": week,
        "split": split_of(opening(item.messages), test_fraction, salt="preferences"),
        "annotator": entry.user.pseudonym,
        "category": item.category,
        "messages": item.messages,
        "chosen": chosen,
        "rejected": rejected,
        "rating": entry.rating,
        "safety_label": entry.safety_label,
    }


def _origin(entry: Entry) -> str:
    """What an item's labels and decisions differ in: a lead may label an item and decide it."""
    if entry.kind == EntryKind.adjudication:
        return f"decision-{entry.id}"
    return entry.user.pseudonym


def _plain(text: str) -> str:
    """Without what a text field of a browser adds or drops."""
    return as_typed(text).strip()


def _edit_row(row: dict[str, Any], edited: str) -> dict[str, Any]:
    return {
        **row,
        "preference_id": f"{row['preference_id']}-edited",
        "source": "annotation_edit",
        "chosen": edited,
        "rejected": row["chosen"],
        "rating": None,  # nobody graded the difference
        "safety_label": None,
    }


def _audit(now: datetime, action: str, subject: str, actor: str = _COMMAND_LINE) -> AuditEntry:
    return AuditEntry(at=now, actor=actor, action=action, subject=subject)
