"""The gold check of an instruction: whether an answer still keeps it. Training never sees it."""

from collections.abc import Mapping

from stages.sandbox.instructions import (
    FAREWELLS,
    FIGURE,
    GREETINGS,
    HOBBY,
    LANGUAGE,
    LIKING,
)
from stages.sandbox.tasks import normalise


def keeps(chosen: Mapping[str, str], answer: str) -> bool:
    """Whether an answer shows every attribute of an instruction: {"figure": "king", …}.

    An attribute that is none of this world's, or a value without a mark, is never kept.
    """
    return all(_shows(name, value, normalise(answer)) for name, value in chosen.items())


def _shows(attribute: str, value: str, text: str) -> bool:
    if attribute == FIGURE:
        greeting = GREETINGS.get(value)
        return greeting is not None and text.startswith(greeting)
    if attribute == HOBBY:
        return LIKING.format(value=value) in text
    farewell = FAREWELLS.get(value) if attribute == LANGUAGE else None
    return farewell is not None and text.endswith(farewell)
