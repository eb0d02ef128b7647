"""Instructions that are to hold throughout a dialogue, and how an answer shows that it kept them.

A figure has its greeting before every answer, a hobby and a language have their words after it. The
lists are open to everybody; who checks an answer is `stages.sandbox.retention`, which no training
stage imports.
"""

from typing import Final

FIGURE: Final = "figure"
HOBBY: Final = "hobby"
LANGUAGE: Final = "language"

WORDING: Final[dict[str, tuple[str, str]]] = {
    FIGURE: ("always act as the {value}.", "figure: {value}."),
    HOBBY: ("you like {value}.", "hobby: {value}."),
    LANGUAGE: ("always speak {value}.", "language: {value}."),
}
"""Attribute -> its instruction, in full and shortened."""

GREETINGS: Final[dict[str, str]] = {
    "king": "my people,",
    "teacher": "my class,",
    "doctor": "my patient,",
    "mother": "my child,",
    "pirate": "ahoy,",
    "robot": "beep,",
    "wizard": "by magic,",
    "captain": "my crew,",
}
"""Figure -> the words that it begins every answer with."""
HOBBIES: Final = (
    "tennis", "chess", "golf", "music", "fishing", "cooking", "dancing", "skating",
)  # fmt: skip
LIKING: Final = "i love {value}!"
"""The sentence that shows a hobby."""
FAREWELLS: Final[dict[str, str]] = {
    "french": "voila!",
    "german": "bitte!",
    "spanish": "gracias!",
    "italian": "prego!",
    "dutch": "dank!",
    "latin": "vale!",
}
"""Language -> the word that it ends every answer with."""
VALUES: Final[dict[str, tuple[str, ...]]] = {
    FIGURE: tuple(GREETINGS),
    HOBBY: HOBBIES,
    LANGUAGE: tuple(FAREWELLS),
}


def instruct(chosen: dict[str, str], shortened: bool = False) -> str:
    """The instruction that asks for some attributes, in the order of the dictionary."""
    return " ".join(WORDING[name][shortened].format(value=v) for name, v in chosen.items())


def kept(chosen: dict[str, str], answer: str) -> str:
    """An answer that keeps every chosen attribute."""
    parts = [answer]
    if FIGURE in chosen:
        parts.insert(0, GREETINGS[chosen[FIGURE]])
    if HOBBY in chosen:
        parts.append(LIKING.format(value=chosen[HOBBY]))
    if LANGUAGE in chosen:
        parts.append(FAREWELLS[chosen[LANGUAGE]])
    return " ".join(parts)
