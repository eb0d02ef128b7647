"""One comparison with its labels, between our database and any file."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from data_contracts.base import Contract
from data_contracts.ratings import Domain, Rating, SafetyLabel


def _encodable(text: str) -> str:
    text.encode()  # half a surrogate pair, which JSON can say, is no text: no file could hold it
    return text


Text = Annotated[str, AfterValidator(_encodable)]
"""Text that can be written as UTF-8."""


class Message(Contract):
    """One turn of the dialogue."""

    role: Literal["system", "user", "assistant"]
    content: Text


class RecordedLabel(Contract):
    """What one annotator said about the comparison."""

    annotator: Text = Field(min_length=1)
    """Pseudonym."""
    pick: Literal["a", "b"]
    rating: Rating
    safety_label: SafetyLabel | None = None
    edited_response: Text | None = None
    created_at: datetime | None = None
    """None where the other tool's file does not tell."""

    @field_validator("created_at")
    @classmethod
    def _in_utc(cls, at: datetime | None) -> datetime | None:
        """UTC is also meant where the file names no zone."""
        if at is None or at.tzinfo is None:
            return at and at.replace(tzinfo=UTC)
        try:
            return at.astimezone(UTC)
        except OverflowError:
            raise ValueError("in UTC this is before year 1 or after year 9999") from None


class Record(Contract):
    """One comparison, in the columns of the comparisons contract, and its labels."""

    comparison_id: Text
    prompt_id: Text
    domain: Domain
    batch: int
    category: Text | None = None
    messages: tuple[Message, ...]
    response_a: Text
    response_b: Text
    model_a: Text
    model_b: Text
    temperature_a: float
    temperature_b: float
    labels: tuple[RecordedLabel, ...] = ()

    def comparison(self) -> dict[str, Any]:
        """The row of the comparisons table."""
        return self.model_dump(mode="json", exclude={"labels"})


def prompt_text(record: Record) -> str:
    """The dialogue as one text, for tools that show a single field."""
    return "\n\n".join(f"{message.role}: {message.content}" for message in record.messages)
