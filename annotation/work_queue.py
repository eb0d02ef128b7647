"""Who gets which item next: no item to more people than its overlap, none of them left lying.

A batch has one slot for every label that it wants. An annotator holds a slot for a while; the page
renews the hold as long as it is open, and a hold that has run out is given to the next one.
"""

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, exists, func, select, update
from sqlalchemy.orm import Session, aliased

from annotation.refusals import NotYoursError
from annotation.storage.schema import (
    Batch,
    BatchState,
    Entry,
    EntryKind,
    Item,
    Slot,
    SlotPurpose,
    SlotState,
    User,
)

HOLD = timedelta(minutes=30)
"""Time without a sign from the page after which an item counts as abandoned."""


def claim(session: Session, user: User, domain: str, now: datetime) -> Slot | None:
    """The slot that this annotator works on next, held for them; None when nothing is left.

    The same slot again as long as it is neither labelled nor skipped, so a reload loses nothing.
    """
    lock_user(session, user)  # two tabs must not get two slots
    slot = session.scalars(_held_by(), {"user_id": user.id, "domain": domain}).first()
    if slot is None:
        batches = session.scalars(_open_batches()).all()
        slot = _check_due(session, user, domain, batches)
        slot = slot or _next_slot(session, user, domain, batches, now)
        if slot is None:
            return None
        slot.is_swapped = bool(secrets.randbelow(2))
    slot.state = SlotState.held
    slot.holder_id = user.id
    slot.held_until = now + HOLD
    return slot


def lock_user(session: Session, user: User) -> None:
    """One change by a user at a time, also when it is sent twice at once; ends with the
    transaction. It is the first lock that is taken, so that none wait for each other in a ring."""
    session.execute(_user_row(), {"user_id": user.id})


def renew(session: Session, user: User, slot_id: int, now: datetime) -> None:
    """Hold a slot for longer; raises NotYoursError when it has been given on."""
    slot = held_slot(session, user, slot_id)
    slot.held_until = now + HOLD


def held_slot(session: Session, user: User, slot_id: int) -> Slot:
    """The user's own slot, locked until the transaction ends; raises NotYoursError."""
    slot = session.scalars(
        select(Slot).where(Slot.id == slot_id).with_for_update(of=Slot)
    ).one_or_none()
    if slot is None or slot.holder_id != user.id or slot.state != SlotState.held:
        raise NotYoursError(
            "This item is not with you any more: it is done, or it lay open for so long that "
            "somebody else has it",
            "Go on with the next one",
        )
    return slot


def release(slot: Slot) -> None:
    """Give a slot back for somebody else; a check is for its holder alone and ends here."""
    slot.held_until = None
    if slot.purpose == SlotPurpose.collect:
        slot.state = SlotState.free
        slot.holder_id = None
    else:
        slot.state = SlotState.done


# Statements are built once: building one costs more than running it.


@cache
def _user_row() -> Select[Any]:
    return select(User.id).where(User.id == bindparam("user_id")).with_for_update()


@cache
def _open_batches() -> Select[Any]:
    """The oldest first."""
    return select(Batch).where(Batch.state == BatchState.open).order_by(Batch.week)


@cache
def _held_by() -> Select[Any]:
    """Slots with this user, the newest hold first: what was undone comes before what was next."""
    return (
        select(Slot)
        .where(Slot.holder_id == bindparam("user_id"), Slot.state == SlotState.held)
        .where(Slot.domain == bindparam("domain"))
        .order_by(Slot.held_until.desc())
        .limit(1)
        .with_for_update(of=Slot)
    )


def _next_slot(
    session: Session, user: User, domain: str, batches: Sequence[Batch], now: datetime
) -> Slot | None:
    """An abandoned slot, else the first free one: every item's first label comes before any
    item's second."""
    for batch in batches:
        place = {"user_id": user.id, "week": batch.week, "domain": domain}
        slot = session.scalars(_abandoned(), place | {"now": now}).first()
        slot = slot or session.scalars(_free(), place).first()
        if slot is not None:
            return slot
    return None


@cache
def _abandoned() -> Select[Any]:
    return _unmet().where(Slot.state == SlotState.held, Slot.held_until < bindparam("now"))


@cache
def _free() -> Select[Any]:
    return _unmet().where(Slot.state == SlotState.free).order_by(Slot.number, Slot.position)


def _unmet() -> Select[Any]:
    """Slots of items that a user has not met, one of them, skipping what others just take."""
    own = aliased(Slot)
    user_id = bindparam("user_id")
    return (
        select(Slot)
        .where(Slot.purpose == SlotPurpose.collect)
        .where(Slot.week == bindparam("week"), Slot.domain == bindparam("domain"))
        .where(~exists().where(Entry.item_id == Slot.item_id, Entry.user_id == user_id))
        .where(~exists().where(own.item_id == Slot.item_id, own.holder_id == user_id))
        .limit(1)
        .with_for_update(of=Slot, skip_locked=True)
    )


# ---- checks: gold items, and own items again ---------------------------------------------------


def _check_due(session: Session, user: User, domain: str, batches: Sequence[Batch]) -> Slot | None:
    """A new slot for a gold or repeated item, when it is this annotator's turn for one."""
    batch = next((batch for batch in reversed(batches) if batch.check_every), None)
    if batch is None:
        return None
    place = {"user_id": user.id, "week": batch.week, "domain": domain}
    num_labels = session.scalar(_num_labels(), place)
    turn, rest = divmod((num_labels or 0) + 1, batch.check_every)
    if rest:
        return None
    kinds = [_gold_item(), _item_to_repeat()]
    purposes = [SlotPurpose.gold, SlotPurpose.repeat]
    for i in (turn + 1) % 2, turn % 2:  # in turn, gold first; the other where there is none
        item = session.scalars(kinds[i], place).first()
        if item is not None:
            return _add_slot(session, item, purposes[i])
    return None


@cache
def _num_labels() -> Select[Any]:
    return (
        select(func.count(Entry.id))
        .join(Item, Entry.item_id == Item.id)
        .where(Entry.user_id == bindparam("user_id"), Entry.kind == EntryKind.label)
        .where(_is_of_batch())
    )


@cache
def _gold_item() -> Select[Any]:
    own = aliased(Slot)
    return (
        select(Item)
        .where(_is_of_batch(), ~Item.is_retired, Item.gold_pick.is_not(None))
        .where(~exists().where(own.item_id == Item.id, own.holder_id == bindparam("user_id")))
        .order_by(Item.position)
        .limit(1)
        .with_for_update(of=Item)
    )


@cache
def _item_to_repeat() -> Select[Any]:
    """The item that this annotator labelled longest ago and has not seen again."""
    repeated = aliased(Slot)
    user_id = bindparam("user_id")
    return (
        select(Item)
        .join(Entry, Entry.item_id == Item.id)
        .where(_is_of_batch(), ~Item.is_retired)
        .where(Entry.user_id == user_id, current_labels(), Entry.purpose == SlotPurpose.collect)
        .where(
            ~exists().where(
                repeated.item_id == Item.id,
                repeated.holder_id == user_id,
                repeated.purpose == SlotPurpose.repeat,
            )
        )
        .order_by(Entry.id)
        .limit(1)
        .with_for_update(of=Item)
    )


def _is_of_batch() -> ColumnElement[bool]:
    return and_(Item.week == bindparam("week"), Item.domain == bindparam("domain"))


def _add_slot(session: Session, item: Item, purpose: SlotPurpose) -> Slot:
    last = session.scalar(select(func.max(Slot.number)).where(Slot.item_id == item.id))
    slot = new_slot(item, (last or 0) + 1, purpose)
    session.add(slot)
    return slot


def new_slot(item: Item, number: int, purpose: SlotPurpose = SlotPurpose.collect) -> Slot:
    """A free place for one label of an item."""
    return Slot(
        item=item,
        week=item.week,
        domain=item.domain,
        position=item.position,
        number=number,
        purpose=purpose,
        state=SlotState.free,
        is_swapped=False,
    )


def retire(session: Session, item: Item) -> None:
    """Take an item out of its batch: it is handed out, counted and delivered no more."""
    item.is_retired = True
    session.execute(update(Slot).where(Slot.item_id == item.id).values(state=SlotState.retired))


def current_labels() -> ColumnElement[bool]:
    """Of `Entry`: labels that nobody has taken back."""
    return and_(Entry.kind == EntryKind.label, is_uncorrected())


def is_uncorrected() -> ColumnElement[bool]:
    """Of `Entry`: no later entry takes this one back."""
    correction = aliased(Entry)
    return ~exists().where(correction.corrects == Entry.id)
