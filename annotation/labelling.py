"""What an annotator says about an item: a choice with its rating, a skip, a flag, an undo."""

import hashlib
from collections.abc import Collection
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
    shown: str | None = None
    """`fingerprint` of the sides that were judged; None from where they cannot change places."""

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

    Raises NotYoursError when the slot has gone to somebody else, when the same submission was kept
    with another answer, or when the answer is to other sides than the slot's; RefusedError for the
    safety combination that the protocol leaves out.
    """
    lock_user(session, user)
    kinds = [EntryKind.label]
    if earlier := _already_kept(session, user, answer.submission_id, kinds, slot_id=slot_id):
        return _repeated(session, user, earlier, is_same=_says(earlier, answer))
    slot = held_slot(session, user, slot_id)
    _check_shown(slot, answer)
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
    kinds = [EntryKind.skip, EntryKind.flag]
    reason = without_nul(passed.reason)
    if earlier := _already_kept(session, user, passed.submission_id, kinds, slot_id=slot_id):
        is_same = (earlier.kind, earlier.reason) == (passed.kind, reason)
        return _repeated(session, user, earlier, is_same)
    slot = held_slot(session, user, slot_id)
    entry = _entry(slot, user, passed.submission_id, EntryKind(passed.kind), now)
    entry.reason = reason
    release(slot)
    session.add(entry)
    return entry


def undo(session: Session, user: User, submission_id: str, now: datetime) -> Slot:
    """Take back the user's last label; the item is with them again.

    Raises RefusedError when there is none, or when it has gone out with a batch.
    """
    lock_user(session, user)
    if earlier := _already_kept(session, user, submission_id, [EntryKind.undo]):
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
    kinds = [EntryKind.adjudication]
    if earlier := _already_kept(session, lead, answer.submission_id, kinds, item_id=item.id):
        return _repeated(session, lead, earlier, is_same=_says(earlier, answer))
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


def sides(item: Item, is_swapped: bool) -> dict[str, str]:
    """The two responses as a holder sees them; which model wrote which is not told."""
    if is_swapped:
        return {"left": item.response_b, "right": item.response_a}
    return {"left": item.response_a, "right": item.response_b}


def fingerprint(shown: dict[str, str]) -> str:
    """Of the sides on a page, for its form to send back: 64 hexadecimal digits that say no more
    about them than the page does."""
    return hashlib.sha256(f"{shown['left']}\0{shown['right']}".encode()).hexdigest()


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
    session: Session,
    user: User,
    submission_id: str,
    kinds: Collection[EntryKind],
    slot_id: int | None = None,
    item_id: int | None = None,
) -> Entry | None:
    """The entry of a submission that arrived before; the lock on the user puts two copies that
    arrive at once one after the other. Raises NotYoursError when it was for something else."""
    entry = session.scalars(select(Entry).where(Entry.submission_id == submission_id)).one_or_none()
    if entry is None:
        return None
    is_same_place = slot_id in (None, entry.slot_id) and item_id in (None, entry.item_id)
    if entry.user_id != user.id or entry.kind not in kinds or not is_same_place:
        raise NotYoursError("This submission was used for another item", "Load the page again")
    return entry


def _repeated(session: Session, user: User, earlier: Entry, is_same: bool) -> Entry:
    """The entry of a submission that comes again and says the same.

    Whoever sent another one, because no answer came to the first, would take it for saved: raises
    NotYoursError, and also when the entry does not stand any more.
    """
    if session.scalar(select(exists().where(Entry.corrects == earlier.id))):
        raise NotYoursError(
            "Not saved: what this page sent first was taken back or replaced since",
            "Load the page again",
        )
    if not is_same:
        raise NotYoursError(
            "Not saved: your first answer to this item had been kept, and this one is different",
            _way_on(session, user, earlier),
        )
    return earlier


def _way_on(session: Session, user: User, kept: Entry) -> str:
    if kept.kind == EntryKind.adjudication:
        return "Decide again here if the first answer was wrong"
    if last_label(session, user) is kept:
        return (
            "Press u (Undo my last label) to take it back and choose again, or go on with the "
            "next one"
        )
    return "Go on with the next one; tell your lead if the first answer was wrong"


def _says(kept: Entry, answer: Answer) -> bool:
    """Whether an entry is what an answer would become."""
    try:
        safety = safety_label(kept.item.domain, answer)
    except RefusedError:  # never kept, so what was kept is another one
        return False
    pick = _picked(answer.side, is_swapped=bool(kept.was_swapped))
    said = (pick, answer.rating, safety, answer.edited_response)
    return said == (kept.pick, kept.rating, kept.safety_label, kept.edited_response)


def _check_shown(slot: Slot, answer: Answer) -> None:
    """Sides are drawn again when an item goes to the next holder, who may be the same one again
    while an older page is still open: its "left" may be the slot's right."""
    if answer.shown not in (None, fingerprint(sides(slot.item, slot.is_swapped))):
        raise NotYoursError(
            "Not saved: you have been given this item anew since this page was loaded, and its "
            "responses may have changed sides",
            "Load the page again and choose there",
        )


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
