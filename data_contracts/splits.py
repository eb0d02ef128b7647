"""The one rule that puts a prompt on a side, so that no prompt is ever on two sides in any table.

The side depends on the first user message alone: every later turn of a dialogue, every response to
it and every table that repeats it lands where the prompt itself does.
"""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from data_contracts.errors import UserError
from data_contracts.ratings import Split


def split_of(
    first_user_message: str,
    test_fraction: float,
    validation_fraction: float = 0.0,
    salt: str = "",
) -> Split:
    """Side of a prompt: test, else validation, else train.

    The same text with other case or spacing gets the same side. Raising the validation fraction
    moves prompts between train and validation only: the test set never changes under it.

    Raises:
        UserError: a fraction outside [0, 1], or a sum above 1.
    """
    _check_fractions(test_fraction, validation_fraction)
    position = _position(first_user_message, salt)
    if position < test_fraction:
        return Split.test
    if position < test_fraction + validation_fraction:
        return Split.validation
    return Split.train


def opening(messages: Sequence[Mapping[str, Any]]) -> str:
    """The first user message of a dialogue, on which its side depends."""
    return next(message["content"] for message in messages if message["role"] == "user")


def normalised(text: str) -> str:
    """Text with case, spacing and Unicode composition taken out, as the split rule sees it."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _position(text: str, salt: str) -> float:
    """Number in [0, 1) that the text and the salt alone decide."""
    salted = f"{salt}\0{normalised(text)}".encode("utf-8", "surrogatepass")
    # 53 bits: what a float holds exactly, so the result is always below 1.
    return (int.from_bytes(hashlib.sha256(salted).digest()[:8], "big") >> 11) / 2**53


def _check_fractions(test_fraction: float, validation_fraction: float) -> None:
    fractions_are_shares = 0 <= test_fraction <= 1 and 0 <= validation_fraction <= 1
    if not fractions_are_shares or test_fraction + validation_fraction > 1:
        raise UserError(
            f"test_fraction={test_fraction} and validation_fraction={validation_fraction} "
            "are not shares of one whole",
            "Give two numbers from 0 to 1 whose sum is at most 1",
        )
