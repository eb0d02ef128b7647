"""Which iteration a scheduled run is for.

Prefect fires every missed schedule at once when a worker comes back. So a number belongs to the run
that took it, whatever becomes of that run, and a week (ISO, UTC) whose iteration is complete gets
no other one.
"""

from datetime import UTC, datetime

from data_contracts.base import Contract
from data_contracts.errors import StoreError
from data_contracts.ledger import Ledger
from data_contracts.store import Store

_DOCUMENT = "numbers.json"
LAST_STAGE = "evaluate"


class Number(Contract):
    """An iteration's number, and who took it."""

    version: int
    week: str
    """ISO, like 2026-W47."""
    run: str
    """Id of the flow run."""
    at: str
    """UTC, ISO 8601."""


class _Numbers(Contract):
    taken: tuple[Number, ...] = ()


def take_number(store: Store, ledger: Ledger, run: str, now: datetime) -> tuple[int, bool]:
    """The version that a flow run is for, and whether there is anything left to do for it.

    A run that asks again gets the number it had. Another one gets the first version that is not
    complete, unless this week's is: then that one, and False.
    """
    with store.lock("iteration-numbers"):
        taken = _read(store)
        own = [number for number in taken if number.run == run]
        if own:
            return own[-1].version, True
        week = week_of(now)
        of_this_week = [number.version for number in taken if number.week == week]
        if of_this_week and is_complete(ledger, of_this_week[-1]):
            return of_this_week[-1], False
        version = next_version(ledger)
        at = now.astimezone(UTC).isoformat(timespec="seconds")
        numbers = _Numbers(taken=(*taken, Number(version=version, week=week, run=run, at=at)))
        store.write(_DOCUMENT, numbers.model_dump_json(indent=2).encode())
        return version, True


def next_version(ledger: Ledger) -> int:
    """The first version from 1 on that is not complete."""
    version = 1
    while is_complete(ledger, version):
        version += 1
    return version


def is_complete(ledger: Ledger, version: int) -> bool:
    """Whether an iteration has come to its end."""
    return ledger.head(version, LAST_STAGE) is not None


def week_of(now: datetime) -> str:
    """ISO year and week in UTC."""
    year, week, _ = now.astimezone(UTC).isocalendar()
    return f"{year}-W{week:02d}"


def _read(store: Store) -> tuple[Number, ...]:
    content = store.read(_DOCUMENT)
    if content is None:
        return ()
    try:
        return _Numbers.model_validate_json(content).taken
    except ValueError:
        raise StoreError(
            f"{_DOCUMENT} in the store {store.home} is damaged",
            "Bring it back from a copy, or delete it: the first version that is not complete is "
            "next then",
        ) from None
