"""One run at a time in a home: two would share a ledger's heads, MLflow runs and a database."""

from collections.abc import Iterator
from contextlib import contextmanager

from data_contracts.store import Store

_held: set[str] = set()
"""Homes of this process: the command takes one, and then its flow does."""


@contextmanager
def occupied(store: Store) -> Iterator[None]:
    """Keep other processes of this machine from running anything in a home during the block.

    Raises UserError that names the process that has it.
    """
    if store.home in _held:
        yield
        return
    with store.lock("runs", wait=False):
        _held.add(store.home)
        try:
            yield
        finally:
            _held.remove(store.home)
