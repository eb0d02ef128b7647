"""Instructions to hold throughout a dialogue: made of attributes with values (§3.3, A.3.5).

An attribute is a figure to act as, a hobby, a language. Its values stand in the settings, and the
chat model may be asked for more. An instruction combines some attributes at random.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, field_validator, model_validator

from data_contracts.base import Contract

MAX_VALUE_WORDS = 4
"""A longer line of the model's list is a sentence, not a name."""
_BULLET = re.compile(r"^\s*(?:[-*•]\s|\(?\d+[.):])\s*")


class Attribute(Contract):
    """One thing that an instruction can ask for."""

    name: str = Field(min_length=1)
    instruction: str
    """With {value} in it: "Always act as {value} from now on."."""
    short: str
    """The same in few words: "Figure: {value}."."""
    values: tuple[str, ...] = ()
    question: str = ""
    """What the chat model is asked for more values; it is not asked when this is empty."""

    @field_validator("instruction", "short")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if "{value}" not in value:
            raise ValueError("write {value} where the value belongs")
        return value

    @model_validator(mode="after")
    def _has_a_source(self) -> "Attribute":
        if not self.values and not self.question:
            raise ValueError("give values, or the question that asks the chat model for them")
        return self


PAPER_ATTRIBUTES = (
    Attribute(
        name="hobby",
        instruction="You enjoy {value}.",
        short="Hobby: {value}.",
        values=("tennis",),
        question="Can you list 20 hobbies, one on each line?",
    ),
    Attribute(
        name="language",
        instruction="Always speak in {value}.",
        short="Language: {value}.",
        values=("French",),
        question="Can you list 20 languages, one on each line?",
    ),
    Attribute(
        name="figure",
        instruction="Always act as {value} from now on.",
        short="Figure: {value}.",
        values=("Napoleon",),
        question="Can you list 20 public figures, one on each line?",
    ),
)
"""The paper's three, each with its one example; the chat model makes the lists longer."""


@dataclass(frozen=True)
class Instruction:
    """Values by attribute, in the attributes' order, and both ways to say them."""

    chosen: Mapping[str, str]
    full: str
    short: str


def combine(
    attributes: Sequence[Attribute], values: Mapping[str, Sequence[str]], rng: np.random.Generator
) -> Instruction:
    """One to all of the attributes, each number of them equally often, with a value each."""
    number = int(rng.integers(1, len(attributes) + 1))
    places = sorted(rng.choice(len(attributes), size=number, replace=False).tolist())
    chosen = {a.name: _one_of(values[a.name], rng) for a in (attributes[i] for i in places)}
    asked = [attribute for attribute in attributes if attribute.name in chosen]
    return Instruction(
        chosen,
        " ".join(a.instruction.replace("{value}", chosen[a.name]) for a in asked),
        " ".join(a.short.replace("{value}", chosen[a.name]) for a in asked),
    )


def _one_of(values: Sequence[str], rng: np.random.Generator) -> str:
    return values[int(rng.integers(len(values)))]


def listed_values(text: str, is_whole: bool = True) -> list[str]:
    """What a chat model's list names: one value a line, or several between commas.

    Bullets, numbers, emphasis and closing stops are taken off; what is longer than a name is left
    out, and so is talk around the list ("Sure!", "Here are 20 hobbies:"). Where the list was cut
    off, its last value is half a value and left out too.
    """
    lines = text.splitlines()
    parts = lines if len(lines) > 1 else text.split(",")
    parts = parts if is_whole else parts[:-1]
    parts = [part for part in parts if not part.rstrip().endswith((":", "!", "?"))]
    return distinct(
        value
        for value in (_BULLET.sub("", part).strip(" \t.,;:!?\"'*_") for part in parts)
        if value and "\ufffd" not in value and len(value.split()) <= MAX_VALUE_WORDS
    )


def distinct(values: Iterable[str]) -> list[str]:
    """Each value once, whatever its case, in the order of first mention."""
    seen: dict[str, str] = {}
    for value in values:
        seen.setdefault(value.casefold(), value)
    return list(seen.values())
