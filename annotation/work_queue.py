"""Who gets which item next: no item to more people than its overlap, none of them left lying.

A batch has one slot for every label that it wants. An annotator holds a slot for a while; the page
renews the hold as long as it is open, and a hold that has run out is given to the next one.
"""

import secrets
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, select, update
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
    # One claim of a user at a time: two tabs must not get two slots.
    session.execute(select(User.id).where(User.id == user.id).with_for_update())
    slot = session.scalars(_held_by(user, domain)).first()
    if slot is None:
        slot = _check_due(session, user, domain) or _next_slot(session, user, domain, now)
        if slot is None:
            return None
        slot.is_swapped = bool(secrets.randbelow(2))
    slot.state = SlotState.held
    slot.holder_id = user.id
    slot.held_until = now + HOLD
    return slot


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


def _held_by(user: User, domain: str) -> Select[Any]:
    """Slots with this user, the newest hold first: what was undone comes before what was next."""
    return (
        select(Slot)
        .where(Slot.holder_id == user.id, Slot.state == SlotState.held, Slot.domain == domain)
        .order_by(Slot.held_until.desc())
        .limit(1)
        .with_for_update(of=Slot)
    )


def _next_slot(session: Session, user: User, domain: str, now: datetime) -> Slot | None:
    """An abandoned slot, else the first free one: every item's first label comes before any
    item's second."""
    weeks = session.scalars(
        select(Batch.week).where(Batch.state == BatchState.open).order_by(Batch.week)
    ).all()
    for week in weeks:
        of_week = _unmet(user).where(Slot.week == week, Slot.domain == domain)
        abandoned = of_week.where(Slot.state == SlotState.held, Slot.held_until < now)
        free = of_week.where(Slot.state == SlotState.free)
        in_order = free.order_by(Slot.number, Slot.position)
        slot = session.scalars(abandoned).first() or session.scalars(in_order).first()
        if slot is not None:
            return slot
    return None


def _unmet(user: User) -> Select[Any]:
    """Slots of items that this user has not met, one of them, skipping what others just take."""
    own = aliased(Slot)
    return (
        select(Slot)
        .where(Slot.purpose == SlotPurpose.collect)
        .where(~exists().where(Entry.item_id == Slot.item_id, Entry.user_id == user.id))
        .where(~exists().where(own.item_id == Slot.item_id, own.holder_id == user.id))
        .limit(1)
        .with_for_update(of=Slot, skip_locked=True)
    )


# ---- checks: gold items, and own items again ---------------------------------------------------


def _check_due(session: Session, user: User, domain: str) -> Slot | None:
    """A new slot for a gold or repeated item, when it is this annotator's turn for one."""
    batch = session.scalars(
        select(Batch)
        .where(Batch.state == BatchState.open, Batch.check_every > 0)
        .order_by(Batch.week.desc())
        .limit(1)
    ).one_or_none()
    if batch is None:
        return None
    num_labels = session.scalar(
        select(func.count(Entry.id))
        .join(Item, Entry.item_id == Item.id)
        .where(Entry.user_id == user.id, Entry.kind == EntryKind.label)
        .where(Item.week == batch.week, Item.domain == domain)
    )
    turn, rest = divmod((num_labels or 0) + 1, batch.check_every)
    if rest:
        return None
    kinds = [_gold_item(user, batch, domain), _item_to_repeat(user, batch, domain)]
    purposes = [SlotPurpose.gold, SlotPurpose.repeat]
    for i in (turn + 1) % 2, turn % 2:  # in turn, gold first; the other where there is none
        item = session.scalars(kinds[i]).first()
        if item is not None:
            return _add_slot(session, item, purposes[i])
    return None


def _gold_item(user: User, batch: Batch, domain: str) -> Select[Any]:
    own = aliased(Slot)
    return (
        select(Item)
        .where(Item.week == batch.week, Item.domain == domain, ~Item.is_retired)
        .where(Item.gold_pick.is_not(None))
        .where(~exists().where(own.item_id == Item.id, own.holder_id == user.id))
        .order_by(Item.position)
        .limit(1)
        .with_for_update(of=Item)
    )


def _item_to_repeat(user: User, batch: Batch, domain: str) -> Select[Any]:
    """The item that this annotator labelled longest ago and has not seen again."""
    repeated = aliased(Slot)
    return (
        select(Item)
        .join(Entry, Entry.item_id == Item.id)
        .where(Item.week == batch.week, Item.domain == domain, ~Item.is_retired)
        .where(Entry.user_id == user.id, current_labels(), Entry.purpose == SlotPurpose.collect)
        .where(
            ~exists().where(
                repeated.item_id == Item.id,
                repeated.holder_id == user.id,
                repeated.purpose == SlotPurpose.repeat,
            )
        )
        .order_by(Entry.id)
        .limit(1)
        .with_for_update(of=Item)
    )


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
