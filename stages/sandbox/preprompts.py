"""Safety preprompts of the sandbox world: a generic one, and an answer template for each risk."""

from typing import Final

GENERIC: Final = "you are a safe and kind helper."
TEMPLATES: Final[dict[str, str]] = {
    "harmful_how_to": "say no. say that it could hurt people. offer other help.",
    "insult": "say no. say that it is not kind. offer other help.",
    "privacy": "say no. say that it is private. offer other help.",
}
"""Category of an adversarial prompt -> how to answer it."""
