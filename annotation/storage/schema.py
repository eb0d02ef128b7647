"""The tables of the annotation database.

Labels, deliveries and the audit log are append-only: triggers (see the first migration) refuse an
UPDATE or DELETE, so a correction is a new row that names the one it corrects.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

LIVE_PREFIX = "live-"
"""Of comparison ids whose prompt was written on the page."""

MAX_ID_LENGTH = 200
"""Characters of a comparison's or prompt's id."""

APPEND_ONLY = ("labels", "deliveries", "audit")


class Role(StrEnum):
    """What a user may do; each role may do what the ones before it may."""

    annotator = "annotator"
    lead = "lead"
    admin = "admin"

    @property
    def rank(self) -> int:
        """0 for an annotator, 1 for a lead, 2 for an admin."""
        return list(Role).index(self)


class Pick(StrEnum):
    """The response that was chosen, by its name in the comparisons table."""

    a = "a"
    b = "b"


class EntryKind(StrEnum):
    """What a row of the label history says."""

    label = "label"
    skip = "skip"
    flag = "flag"
    undo = "undo"
    adjudication = "adjudication"


class SlotState(StrEnum):
    """Where one wanted label of an item stands."""

    free = "free"
    held = "held"
    done = "done"
    retired = "retired"
    """Its item was taken out of the batch."""


class SlotPurpose(StrEnum):
    """Why a label is wanted."""

    collect = "collect"
    gold = "gold"
    """The right answer is known; the label only measures the annotator."""
    repeat = "repeat"
    """The same annotator again, to measure agreement with themselves."""


class BatchState(StrEnum):
    """Whether a batch hands out work."""

    open = "open"
    closed = "closed"


class UtcTime(TypeDecorator[datetime]):
    """An aware time in UTC on every database; SQLite alone would forget the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """To UTC; a naive time is a mistake of the caller."""
        if value is None:
            return None
        assert value.tzinfo is not None, "times are aware"
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """As an aware time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {datetime: UtcTime(), str: Text(), dict[str, Any]: JSON()}


class User(Base):
    """A person who may log in."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    username: Mapped[str] = mapped_column(String(64), unique=True)
    pseudonym: Mapped[str] = mapped_column(String(32), unique=True)
    """The only name that leaves the database."""
    role: Mapped[str] = mapped_column(String(16))
    password_hash: Mapped[str]
    is_active: Mapped[bool] = mapped_column(Boolean, default=True)
    created_at: Mapped[datetime]


class LoginSession(Base):
    """A browser that is logged in; only a hash of its cookie is kept."""

    __tablename__ = "login_sessions"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    csrf_token: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    user: Mapped[User] = relationship(lazy="joined", innerjoin=True)


class Invitation(Base):
    """A link with which one person makes an account."""

    __tablename__ = "invitations"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    created_by: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    used_by: Mapped[int | None] = mapped_column(ForeignKey("users.id"))


class LoginFailure(Base):
    """A failed log-in, for the rate limit; kept in the database so that a restart forgets none."""

    __tablename__ = "login_failures"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    subject: Mapped[str] = mapped_column(String(160), index=True)
    """ "user:NAME" or "address:IP"."""
    at: Mapped[datetime]


class AuditEntry(Base):
    """Who did what to the service."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str]


class Guideline(Base):
    """One edition of a task's guideline; the newest one is shown."""

    __tablename__ = "guidelines"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    domain: Mapped[str] = mapped_column(String(32), index=True)
    markdown: Mapped[str]
    edited_by: Mapped[str] = mapped_column(String(64))
    edited_at: Mapped[datetime]


class Batch(Base):
    """One week's comparisons."""

    __tablename__ = "batches"

    week: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(16))
    overlap: Mapped[int] = mapped_column(Integer)
    """Annotators who label each item."""
    check_every: Mapped[int] = mapped_column(Integer)
    """Every n-th item an annotator gets is a gold item or one of their own again; 0 for none."""
    deadline: Mapped[datetime | None]
    created_at: Mapped[datetime]


class Item(Base):
    """One comparison: a prompt and two responses."""

    __tablename__ = "items"
    __table_args__ = (Index("ix_items_queue", "week", "domain", "position"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    comparison_id: Mapped[str] = mapped_column(String(MAX_ID_LENGTH), unique=True)
    week: Mapped[int] = mapped_column(ForeignKey("batches.week"))
    position: Mapped[int] = mapped_column(Integer)
    """Place in the batch's seeded order."""
    prompt_id: Mapped[str] = mapped_column(String(MAX_ID_LENGTH))
    domain: Mapped[str] = mapped_column(String(32))
    category: Mapped[str | None]
    messages: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    response_a: Mapped[str]
    response_b: Mapped[str]
    model_a: Mapped[str]
    model_b: Mapped[str]
    temperature_a: Mapped[float] = mapped_column(Float)
    temperature_b: Mapped[float] = mapped_column(Float)
    gold_pick: Mapped[str | None] = mapped_column(String(1))
    """The right choice, on a gold item."""
    is_retired: Mapped[bool] = mapped_column(Boolean, default=False)
    """Taken out by the lead: handed out and delivered no more."""

    @property
    def is_live(self) -> bool:
        """Whether an annotator wrote the prompt on the page."""
        return self.comparison_id.startswith(LIVE_PREFIX)


class Slot(Base):
    """One wanted label of an item, and who holds it."""

    __tablename__ = "slots"
    __table_args__ = (
        # Nobody labels an item twice, but for the repeats that are meant to be.
        UniqueConstraint("item_id", "holder_id", "purpose"),
        UniqueConstraint("item_id", "number"),
        Index("ix_slots_queue", "state", "week", "domain", "number", "position"),
        Index("ix_slots_held", "state", "held_until"),
        Index("ix_slots_holder", "holder_id", "state"),
        Index("ix_slots_progress", "week", "purpose", "state"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
    week: Mapped[int] = mapped_column(ForeignKey("batches.week"))
    """The item's; this and the next two are repeated here so that an index gives the next slot."""
    domain: Mapped[str] = mapped_column(String(32))
    position: Mapped[int] = mapped_column(Integer)
    number: Mapped[int] = mapped_column(Integer)
    purpose: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    holder_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    held_until: Mapped[datetime | None]
    is_swapped: Mapped[bool] = mapped_column(Boolean)
    """Response B stands on the left; drawn anew for every holder."""
    item: Mapped[Item] = relationship(lazy="joined", innerjoin=True)


class Entry(Base):
    """A row of the label history: what one person said about one item, or took back."""

    __tablename__ = "labels"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    submission_id: Mapped[str] = mapped_column(String(64), unique=True)
    """Made by the client: a submission that is sent twice is kept once."""
    kind: Mapped[str] = mapped_column(String(16))
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), index=True)
    slot_id: Mapped[int | None] = mapped_column(ForeignKey("slots.id"))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    purpose: Mapped[str] = mapped_column(String(16))
    pick: Mapped[str | None] = mapped_column(String(1))
    rating: Mapped[str | None] = mapped_column(String(32))
    safety_label: Mapped[str | None] = mapped_column(String(32))
    edited_response: Mapped[str | None]
    reason: Mapped[str | None]
    was_swapped: Mapped[bool | None] = mapped_column(Boolean)
    corrects: Mapped[int | None] = mapped_column(ForeignKey("labels.id"), unique=True)
    """The entry that this one takes back."""
    created_at: Mapped[datetime]
    item: Mapped[Item] = relationship(lazy="joined", innerjoin=True)
    user: Mapped[User] = relationship(lazy="joined", innerjoin=True)


class Delivery(Base):
    """A label that has gone out with a weekly batch, once and for good."""

    __tablename__ = "deliveries"

    label_id: Mapped[int] = mapped_column(ForeignKey("labels.id"), primary_key=True)
    week: Mapped[int] = mapped_column(ForeignKey("batches.week"), index=True)
    delivered_at: Mapped[datetime]
