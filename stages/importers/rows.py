"""What importers hand over: one row of a user's file, before it has an id, a source or a split."""

from dataclasses import dataclass

Message = dict[str, str]
"""role ("system", "user" or "assistant") and content."""


@dataclass(frozen=True, slots=True)
class Document:
    """A pretraining text."""

    text: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A dialogue that ends with the assistant; `learned` marks the messages with a loss."""

    messages: list[Message]
    learned: list[bool]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A dialogue that ends with the user; fields that the file leaves out are None."""

    messages: list[Message]
    domain: str | None = None
    category: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """Two responses to one prompt; fields that the file leaves out are None."""

    messages: list[Message]
    chosen: str
    rejected: str
    rating: str | None = None
    safety_label: str | None = None
    annotator: str | None = None
    domain: str | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A sound row that carries nothing to learn from; counted under its reason."""

    reason: str


Row = Document | Demonstration | Prompt | Preference
