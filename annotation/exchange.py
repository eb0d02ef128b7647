"""A batch as records for other tools, and records of other tools as a batch."""

import hashlib
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.batches import BatchPlan, items_named, pieces, publish, refuse_other_texts
from annotation.comparable import check_comparable
from annotation.formats import argilla, flat, label_studio
from annotation.formats.records import Record, RecordedLabel
from annotation.labelling import without_nul
from annotation.storage.schema import (
    Entry,
    EntryKind,
    Item,
    Role,
    Slot,
    SlotPurpose,
    SlotState,
    User,
)
from annotation.work_queue import current_labels, is_uncorrected, lock_user, new_slot
from data_contracts.errors import UserError

NO_PASSWORD = "!"
"""No hash is like it: an imported annotator cannot log in."""

_OUR_PSEUDONYM = re.compile(r"annotator-[0-9a-f]{8}")
"""As `accounts` gives them."""


@dataclass(frozen=True)
class Format:
    """How records stand in a file of another tool."""

    write: Callable[[list[Record]], str]
    read: Callable[[str], list[Record]]


FORMATS = {
    "jsonl": Format(flat.to_jsonl, flat.from_jsonl),
    "csv": Format(flat.to_csv, flat.from_csv),
    "label_studio": Format(label_studio.to_tasks, label_studio.from_tasks),
    "argilla": Format(argilla.to_records, argilla.from_records),
}


def read_records(text: str, format_name: str, file: str) -> list[Record]:
    """The records of a file, at least one.

    Raises UserError that names file, place, comparison and field, without quoting the file's text.
    """
    wanted = format_named(format_name)
    try:
        found = wanted.read(text)
    except UserError as error:
        raise UserError(f"{file}, {error.problem}", error.remedy) from None
    if not found:
        raise UserError(f"{file} holds no comparison", "Give a file of at least one")
    return found


def format_named(name: str) -> Format:
    """A format by its name; raises UserError."""
    if name not in FORMATS:
        raise UserError(f"There is no format {name!r}", f"Use one of: {', '.join(FORMATS)}")
    return FORMATS[name]


def records(session: Session, week: int) -> list[Record]:
    """All items of a batch with their standing labels, gold items and checks left out."""
    labels: dict[int, list[RecordedLabel]] = defaultdict(list)
    for entry in session.scalars(
        select(Entry)
        .join(Item, Entry.item_id == Item.id)
        .where(Item.week == week, current_labels(), Entry.purpose == SlotPurpose.collect)
        .order_by(Entry.id)
    ):
        labels[entry.item_id].append(_recorded(entry))
    items = session.scalars(
        select(Item)
        .where(Item.week == week, ~Item.is_retired, Item.gold_pick.is_(None))
        .order_by(Item.position)
    )
    return [_record(item, labels[item.id]) for item in items]


def _recorded(entry: Entry) -> RecordedLabel:
    return RecordedLabel.model_validate(
        {
            "annotator": entry.user.pseudonym,
            "pick": entry.pick,
            "rating": entry.rating,
            "safety_label": entry.safety_label,
            "edited_response": entry.edited_response,
            "created_at": entry.created_at,
        }
    )


def _record(item: Item, labels: list[RecordedLabel]) -> Record:
    columns = {name: getattr(item, name) for name in Record.model_fields if hasattr(item, name)}
    return Record.model_validate({**columns, "batch": item.week, "labels": labels})


def import_records(
    session: Session, week: int, given: list[Record], plan: BatchPlan, now: datetime
) -> tuple[int, int]:
    """Publish records as a batch and keep their labels; (new items, new labels).

    Importing a file again adds nothing, nor does what was exported from here. Annotators of the
    other tool become users who cannot log in, known by a pseudonym.

    Raises UserError, with nothing written, where a comparison is of another week or has other
    texts, and where an annotator's label here is another one.
    """
    rows = [record.comparison() for record in given]
    check_comparable(rows, "The import")
    _check_labels(given)
    names = [record.comparison_id for record in given]
    known = items_named(session, names)
    _check_week(known.values(), week)
    refuse_other_texts(rows, known)
    num_items = publish(session, week, rows, plan, now)
    return num_items, _add_labels(session, items_named(session, names), given, now)


def _check_week(items: Iterable[Item], week: int) -> None:
    for item in items:
        if item.week != week:
            raise UserError(
                f"Comparison {item.comparison_id} is in week {item.week} already",
                f"Import the file with --week {item.week} if it is of that week; else give the "
                "comparison an id of its own",
            )


def _check_labels(given: list[Record]) -> None:
    for record in given:
        names = [label.annotator for label in record.labels]
        if len(set(names)) < len(names):
            raise UserError(
                f"Comparison {record.comparison_id} has two labels of one annotator",
                "Keep the one that counts",
            )


def _add_labels(
    session: Session, items: Mapping[str, Item], given: list[Record], now: datetime
) -> int:
    """Keep the labels that are not here yet; returns how many those are.

    Locks are taken in one order, everywhere: users by id (`_annotators`), then items.
    """
    users = _annotators(session, given, now)
    history = _history(session, items.values())
    num_new = 0
    for record in sorted(given, key=lambda record: items[record.comparison_id].id):
        item = items[record.comparison_id]
        for label in record.labels:
            entry = _entry(item, users[label.annotator], label, now)
            earlier = history[item.id, entry.user_id]
            if not _is_here(earlier, entry, label, item):
                entry.slot_id = _slot_for(session, item, users[label.annotator]).id
                session.add(entry)
                earlier.append(_Kept(entry.submission_id, _said(entry), entry.created_at, True))
                num_new += 1
    return num_new


class _Kept(NamedTuple):
    """What an annotator has said of an item before."""

    submission_id: str
    said: tuple[str | None, ...]
    at: datetime
    stands: bool
    """Whether it has not been taken back."""


def _history(session: Session, items: Iterable[Item]) -> defaultdict[tuple[int, int], list[_Kept]]:
    """The labels that there are of these items, by item and user; taken back or not."""
    found: defaultdict[tuple[int, int], list[_Kept]] = defaultdict(list)
    for some in pieces([item.id for item in items]):
        rows = session.execute(
            select(
                Entry.item_id,
                Entry.user_id,
                Entry.submission_id,
                Entry.created_at,
                is_uncorrected().label("stands"),
                *(getattr(Entry, name) for name in _SAID),
            )
            .where(Entry.item_id.in_(some))
            .where(Entry.kind == EntryKind.label, Entry.purpose == SlotPurpose.collect)
        )
        for item_id, user_id, submission_id, at, stands, *said in rows:
            found[item_id, user_id].append(_Kept(submission_id, tuple(said), at, stands))
    return found


def _entry(item: Item, user: User, label: RecordedLabel, now: datetime) -> Entry:
    return Entry(
        submission_id=_submission_id(item, label),
        kind=EntryKind.label,
        item_id=item.id,
        user_id=user.id,
        purpose=SlotPurpose.collect,
        pick=label.pick,
        rating=label.rating,
        safety_label=label.safety_label,
        edited_response=label.edited_response and without_nul(label.edited_response),
        created_at=label.created_at or now,
    )


def _is_here(history: Iterable[_Kept], entry: Entry, label: RecordedLabel, item: Item) -> bool:
    """Whether a label is among its annotator's of the item, or was and has been taken back since.

    Raises UserError where the one that stands is another one.
    """
    said = _said(entry)
    if any(
        kept.submission_id == entry.submission_id
        or (kept.said == said and (kept.stands or kept.at == label.created_at))
        for kept in history
    ):
        return True
    if any(kept.stands for kept in history):
        raise UserError(
            f"{label.annotator!r} has another label of comparison {item.comparison_id} here",
            "A label is never overwritten: take this one out of the file. If the one that is here "
            "is wrong, its annotator takes it back, or the lead decides the item",
        )
    return False


_SAID = ("pick", "rating", "safety_label", "edited_response")


def _said(entry: Entry) -> tuple[str | None, ...]:
    return tuple(getattr(entry, name) for name in _SAID)


def _slot_for(session: Session, item: Item, user: User) -> Slot:
    """The slot of the item that the annotator holds, else a free one, now done; one more where all
    are taken."""
    slots = session.scalars(
        select(Slot).where(Slot.item_id == item.id).order_by(Slot.number).with_for_update(of=Slot)
    ).all()
    own = [s for s in slots if s.holder_id == user.id and s.purpose == SlotPurpose.collect]
    free = [slot for slot in slots if slot.state == SlotState.free]
    slot = next(iter(own + free), None)
    if slot is None:
        slot = new_slot(item, max((slot.number for slot in slots), default=0) + 1)
        session.add(slot)
    slot.state = SlotState.retired if item.is_retired else SlotState.done
    slot.holder_id, slot.held_until = user.id, None
    session.flush()
    return slot


def _annotators(session: Session, given: Iterable[Record], at: datetime) -> dict[str, User]:
    """The users of all annotators, by the name that a file has for them, locked: while they are,
    none of them labels, so what they have said stays as it is."""
    names = sorted({label.annotator for record in given for label in record.labels})
    users = {name: _annotator(session, name, at) for name in names}
    for user in sorted(users.values(), key=lambda user: user.id):
        lock_user(session, user)
    return users


def _annotator(session: Session, name: str, at: datetime) -> User:
    """The user with that pseudonym, or one of another tool.

    A pseudonym of ours stays what it is: what goes from one database to another and back is known
    there by it.
    """
    name = without_nul(name)
    username = f"imported:{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    user = session.scalars(
        select(User)
        .where((User.pseudonym == name) | (User.username == username))
        .order_by(User.pseudonym != name)
        .limit(1)
    ).one_or_none()
    if user is None:
        is_ours = _OUR_PSEUDONYM.fullmatch(name)
        user = User(
            username=username,
            pseudonym=name if is_ours else f"annotator-{secrets.token_hex(4)}",
            role=Role.annotator,
            password_hash=NO_PASSWORD,
            is_active=False,
            created_at=at,
        )
        session.add(user)
        session.flush()
    return user


def _submission_id(item: Item, label: RecordedLabel) -> str:
    content = "\0".join([item.comparison_id, label.annotator, label.model_dump_json()])
    return hashlib.sha256(content.encode()).hexdigest()
