"""Whose a home is: one process runs in it at a time, for one product, whose recipe it remembers."""

from collections.abc import Iterator
from contextlib import contextmanager

from data_contracts.durable import write_durably
from data_contracts.errors import UserError
from data_contracts.store import Store
from flows.environment import Places
from flows.recipe import Recipe, parse_file
from stages.runtime import stopping

_held: set[str] = set()
"""Homes of this process: the command takes one, and then its flow does."""


@contextmanager
def occupied(store: Store) -> Iterator[None]:
    """Keep other processes of this machine from running anything in a home during the block.

    Two would share a ledger's heads, MLflow runs and a database. Raises UserError that names the
    process that has it.
    """
    if store.home in _held:
        yield
        return
    with store.lock("runs", wait=False):
        _held.add(store.home)
        stopping.forget(store.scratch)  # asked of the run before
        try:
            yield
        finally:
            _held.remove(store.home)


def claim(where: Places, recipe: Recipe, keep: bool = False) -> None:
    """Write down the home's recipe, which later commands take; `keep` leaves one that is there.

    Raises UserError when the home holds another product.
    """
    refuse_other_product(where, recipe)
    if not (keep and where.recipe.is_file()):
        write_durably(where.recipe, recipe.model_dump_json(indent=2).encode())


def refuse_other_product(where: Places, recipe: Recipe) -> None:
    """Raise UserError when the home holds another product: its versions would be mixed."""
    held = parse_file(where.recipe).get("product") if where.recipe.is_file() else recipe.product
    if held != recipe.product:
        raise UserError(
            f"The home {where.home} holds the iterations of {held}, and recipe "
            f"{recipe.name} is for {recipe.product}",
            "Choose another folder with --home, one for each product",
        )
