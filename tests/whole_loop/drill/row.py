"""One row of the drill: a scenario by name, and how it ends when it cannot be tried here."""

from collections.abc import Callable
from dataclasses import dataclass

from drill.house import House


class NotHere(Exception):  # noqa: N818 - no failure: this machine does not allow the scenario
    """Why a scenario cannot be tried on this machine."""


@dataclass(frozen=True)
class Row:
    """A scenario; it returns what it measured, and raises when something does not hold."""

    name: str
    run: Callable[[House], str]
    is_core: bool = False
    """Also tried on Postgres."""


def require(holds: bool, otherwise: object) -> None:
    """Raise AssertionError with what was found instead."""
    if not holds:
        raise AssertionError(str(otherwise))
