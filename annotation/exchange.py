"""A batch as records for other tools, and records of other tools as a batch."""

import csv
import hashlib
import secrets
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotation.batches import BatchPlan, publish
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
from annotation.work_queue import current_labels, new_slot
from data_contracts.errors import UserError

NO_PASSWORD = "!"
"""No hash is like it: an imported annotator cannot log in."""


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
    """The records of a file; raises UserError, without quoting the file's text."""
    try:
        return format_named(format_name).read(text)
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in e["loc"]) for e in error.errors()})
        problem = f"{file} is no file of the format {format_name}: check {', '.join(fields[:3])}"
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        problem = f"{file} is no file of the format {format_name}: {type(error).__name__}"
    raise UserError(problem, "Give the format that the file has, or export it again")


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

    Importing a file again adds nothing. Annotators of the other tool become users who cannot log
    in, known by a pseudonym.
    """
    rows = [record.comparison() for record in given]
    check_comparable(rows, "The import")
    _check_labels(given)
    num_items = publish(session, week, rows, plan, now)
    known = set(session.scalars(select(Entry.submission_id)))
    num_labels = 0
    for record in given:
        item = session.scalars(select(Item).where(Item.comparison_id == record.comparison_id)).one()
        for label in record.labels:
            submission_id = _submission_id(record, label)
            if submission_id not in known:
                _add_label(session, item, label, submission_id, now)
                num_labels += 1
    return num_items, num_labels


def _check_labels(given: list[Record]) -> None:
    for record in given:
        names = [label.annotator for label in record.labels]
        if len(set(names)) < len(names):
            raise UserError(
                f"Comparison {record.comparison_id} has two labels of one annotator",
                "Keep the one that counts",
            )


def _add_label(
    session: Session, item: Item, label: RecordedLabel, submission_id: str, now: datetime
) -> None:
    user = _annotator(session, label.annotator, now)
    slot = _slot_for(session, item, user)
    session.add(
        Entry(
            submission_id=submission_id,
            kind=EntryKind.label,
            item=item,
            slot_id=slot.id,
            user_id=user.id,
            purpose=SlotPurpose.collect,
            pick=label.pick,
            rating=label.rating,
            safety_label=label.safety_label,
            edited_response=label.edited_response and without_nul(label.edited_response),
            created_at=label.created_at or now,
        )
    )


def _slot_for(session: Session, item: Item, user: User) -> Slot:
    """A free slot of the item, now done; one more where all are taken."""
    slots = session.scalars(
        select(Slot).where(Slot.item_id == item.id).order_by(Slot.number).with_for_update(of=Slot)
    ).all()
    slot = next((slot for slot in slots if slot.state == SlotState.free), None)
    if slot is None:
        number = max((slot.number for slot in slots), default=0) + 1
        slot = new_slot(item, number)
        session.add(slot)
    slot.state, slot.holder_id = SlotState.done, user.id
    session.flush()
    return slot


def _annotator(session: Session, name: str, at: datetime) -> User:
    """The user with that pseudonym, or one of another tool."""
    username = f"imported:{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    user = session.scalars(
        select(User).where((User.pseudonym == name) | (User.username == username))
    ).one_or_none()
    if user is None:
        user = User(
            username=username,
            pseudonym=f"annotator-{secrets.token_hex(4)}",
            role=Role.annotator,
            password_hash=NO_PASSWORD,
            is_active=False,
            created_at=at,
        )
        session.add(user)
        session.flush()
    return user


def _submission_id(record: Record, label: RecordedLabel) -> str:
    content = "\0".join([record.comparison_id, label.annotator, label.model_dump_json()])
    return hashlib.sha256(content.encode()).hexdigest()
