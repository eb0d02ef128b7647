"""One comparison with its labels, between our database and any file."""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import field_validator

from data_contracts.base import Contract
from data_contracts.ratings import Domain, Rating, SafetyLabel


class Message(Contract):
    """One turn of the dialogue."""

    role: Literal["system", "user", "assistant"]
    content: str


class RecordedLabel(Contract):
    """What one annotator said about the comparison."""

    annotator: str
    """Pseudonym."""
    pick: Literal["a", "b"]
    rating: Rating
    safety_label: SafetyLabel | None = None
    edited_response: str | None = None
    created_at: datetime | None = None
    """None where the other tool's file does not tell."""

    @field_validator("created_at")
    @classmethod
    def _in_utc_unless_it_says(cls, at: datetime | None) -> datetime | None:
        return at.replace(tzinfo=UTC) if at and at.tzinfo is None else at


class Record(Contract):
    """One comparison, in the columns of the comparisons contract, and its labels."""

    comparison_id: str
    prompt_id: str
    domain: Domain
    batch: int
    category: str | None = None
    messages: tuple[Message, ...]
    response_a: str
    response_b: str
    model_a: str
    model_b: str
    temperature_a: float
    temperature_b: float
    labels: tuple[RecordedLabel, ...] = ()

    def comparison(self) -> dict[str, Any]:
        """The row of the comparisons table."""
        return self.model_dump(mode="json", exclude={"labels"})


def prompt_text(record: Record) -> str:
    """The dialogue as one text, for tools that show a single field."""
    return "\n\n".join(f"{message.role}: {message.content}" for message in record.messages)
