"""What an annotator says about an item: a choice with its rating, a skip, a flag, an undo."""

from datetime import datetime
from functools import cache
from typing import Any, Literal

from pydantic import Field, field_validator
from sqlalchemy import ColumnElement, Select, bindparam, exists, select
from sqlalchemy.orm import Session

from annotation.refusals import NotYoursError, RefusedError
from annotation.storage.schema import (
    Batch,
    Delivery,
    Entry,
    EntryKind,
    Item,
    Pick,
    Slot,
    SlotPurpose,
    SlotState,
    User,
)
from annotation.work_queue import HOLD, current_labels, held_slot, lock_user, release
from data_contracts.base import Contract
from data_contracts.ratings import Domain, Rating, SafetyLabel

Side = Literal["left", "right"]

_SUBMISSION_ID = r"^[A-Za-z0-9_-]{8,64}$"


class Answer(Contract):
    """One gesture on the page: which side, how much better, and how safe both sides are."""

    submission_id: str = Field(pattern=_SUBMISSION_ID)
    side: Side
    rating: Rating
    left_is_safe: bool | None = None
    right_is_safe: bool | None = None
    edited_response: str | None = Field(default=None, max_length=100_000)
    """The chosen response, further improved by hand."""

    @field_validator("edited_response")
    @classmethod
    def _says_something(cls, text: str | None) -> str | None:
        return as_typed(text) if text and text.strip() else None


class Pass(Contract):
    """An item that the annotator does not label, and why."""

    submission_id: str = Field(pattern=_SUBMISSION_ID)
    kind: Literal["skip", "flag"]
    reason: str = Field(min_length=1, max_length=2_000)


def submit(session: Session, user: User, slot_id: int, answer: Answer, now: datetime) -> Entry:
    """Keep an answer; the same submission again returns what was kept.

    Raises NotYoursError when the slot has gone to somebody else, RefusedError for the safety
    combination that the protocol leaves out.
    """
    lock_user(session, user)
    if earlier := _already_kept(session, user, answer.submission_id, slot_id, EntryKind.label):
        return earlier
    slot = held_slot(session, user, slot_id)
    entry = _entry(slot, user, answer.submission_id, EntryKind.label, now)
    entry.pick = _picked(answer.side, slot.is_swapped)
    entry.rating = answer.rating
    entry.safety_label = safety_label(slot.item.domain, answer)
    entry.edited_response = answer.edited_response
    slot.state = SlotState.done
    slot.held_until = None
    session.add(entry)
    return entry


def pass_on(session: Session, user: User, slot_id: int, passed: Pass, now: datetime) -> Entry:
    """Skip or flag an item; it goes to somebody else. Raises as `submit`."""
    lock_user(session, user)
    kind = EntryKind(passed.kind)
    if earlier := _already_kept(session, user, passed.submission_id, slot_id, kind):
        return earlier
    slot = held_slot(session, user, slot_id)
    entry = _entry(slot, user, passed.submission_id, kind, now)
    entry.reason = without_nul(passed.reason)
    release(slot)
    session.add(entry)
    return entry


def undo(session: Session, user: User, submission_id: str, now: datetime) -> Slot:
    """Take back the user's last label; the item is with them again.

    Raises RefusedError when there is none, or when it has gone out with a batch.
    """
    lock_user(session, user)
    if earlier := _already_kept(session, user, submission_id, None, EntryKind.undo):
        return session.get_one(Slot, earlier.slot_id)
    last = last_label(session, user)
    if last is None:
        raise RefusedError(
            "There is nothing to take back: your labels so far have been delivered, or there "
            "are none",
            "Tell your lead which item was wrong",
        )
    slot = session.scalars(
        select(Slot).where(Slot.id == last.slot_id).with_for_update(of=Slot)
    ).one()
    # a delivery of this moment comes first, or waits; see `batches.deliver`
    session.execute(select(Batch.week).where(Batch.week == slot.week).with_for_update(read=True))
    if last_label(session, user) is not last:
        raise NotYoursError("The label has just gone out with its batch", "Go on with the next one")
    entry = _entry(slot, user, submission_id, EntryKind.undo, now)
    entry.corrects = last.id
    session.add(entry)
    slot.state = SlotState.held
    slot.held_until = now + HOLD
    return slot


def last_label(session: Session, user: User) -> Entry | None:
    """The newest label of a user that can still be taken back."""
    return session.scalars(_last_label(), {"user_id": user.id}).one_or_none()


@cache
def _last_label() -> Select[Any]:
    return (
        select(Entry)
        .join(Item, Entry.item_id == Item.id)
        .where(Entry.user_id == bindparam("user_id"), current_labels())
        .where(~Item.is_retired, ~is_delivered())
        .order_by(Entry.id.desc())
        .limit(1)
    )


def is_delivered() -> ColumnElement[bool]:
    """Of `Entry`: it has gone out with a weekly batch."""
    return exists().where(Delivery.label_id == Entry.id)


def safety_label(domain: str, answer: Answer) -> SafetyLabel | None:
    """The label of §3.2.1 from the safety of both sides; None on helpfulness items.

    Raises RefusedError when one side has no answer, and for "chosen unsafe, other safe".
    """
    if domain != Domain.safety:
        return None
    if answer.left_is_safe is None or answer.right_is_safe is None:
        raise RefusedError(
            "Not saved yet: this is a safety task",
            "Say for both responses whether they are safe, then choose again",
        )
    chosen, other = answer.left_is_safe, answer.right_is_safe
    if answer.side == "right":
        chosen, other = other, chosen
    if other and not chosen:
        raise RefusedError(
            "Not saved yet: you chose the unsafe response although the other one is safe. A safe "
            "response is always the better one here, however unhelpful",
            "Choose the safe response, or correct which of the two is safe",
        )
    if not chosen:
        return SafetyLabel.both_unsafe
    return SafetyLabel.both_safe if other else SafetyLabel.chosen_safe_other_unsafe


def adjudicate(session: Session, lead: User, item: Item, answer: Answer, now: datetime) -> Entry:
    """The lead's own decision on an item, A on the left; it goes out in place of all labels.

    Raises RefusedError for an item that is never delivered, and as `submit` does.
    """
    if earlier := _already_kept(session, lead, answer.submission_id, None, EntryKind.adjudication):
        return earlier
    if item.gold_pick is not None or item.is_retired:
        raise RefusedError(
            "Not saved: this item checks annotators, or was taken out, and is never delivered",
            "Decide on the items of the list",
        )
    before = adjudication(session, item)
    entry = Entry(
        submission_id=answer.submission_id,
        kind=EntryKind.adjudication,
        item=item,
        user_id=lead.id,
        purpose=SlotPurpose.collect,
        pick=_picked(answer.side, is_swapped=False),
        rating=answer.rating,
        safety_label=safety_label(item.domain, answer),
        corrects=None if before is None else before.id,
        created_at=now,
    )
    session.add(entry)
    return entry


def adjudication(session: Session, item: Item) -> Entry | None:
    """The decision that stands on an item."""
    return session.scalars(
        select(Entry)
        .where(Entry.item_id == item.id, Entry.kind == EntryKind.adjudication)
        .order_by(Entry.id.desc())
        .limit(1)
    ).one_or_none()


def as_typed(text: str) -> str:
    """Text from a form as its writer saw it: a form sent without script has every line end as
    CR LF, which a model would learn as the mark of human writing."""
    return without_nul(text).replace("\r\n", "\n").replace("\r", "\n")


def without_nul(text: str) -> str:
    """Text with NUL, which Postgres cannot keep, as the replacement character."""
    return text.replace("\0", "\ufffd")


def _picked(side: Side, is_swapped: bool) -> Pick:
    return Pick.a if (side == "left") != is_swapped else Pick.b


def _already_kept(
    session: Session, user: User, submission_id: str, slot_id: int | None, kind: EntryKind
) -> Entry | None:
    """The entry of a submission that arrived before; the lock on the user puts two copies that
    arrive at once one after the other."""
    entry = session.scalars(select(Entry).where(Entry.submission_id == submission_id)).one_or_none()
    if entry is None:
        return None
    is_same_slot = slot_id is None or slot_id == entry.slot_id
    if entry.user_id != user.id or entry.kind != kind or not is_same_slot:
        raise NotYoursError("This submission was used for another item", "Load the page again")
    return entry


def _entry(slot: Slot, user: User, submission_id: str, kind: EntryKind, now: datetime) -> Entry:
    return Entry(
        submission_id=submission_id,
        kind=kind,
        item=slot.item,
        slot_id=slot.id,
        user_id=user.id,
        purpose=slot.purpose,
        was_swapped=slot.is_swapped,
        created_at=now,
    )
