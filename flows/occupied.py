"""Whose a home is: one process runs in it at a time, for one product, whose recipe it remembers."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_contracts.durable import write_durably
from data_contracts.errors import UserError
from data_contracts.store import Store
from flows.environment import Places
from flows.recipe import Recipe, load_recipe, parse_file
from stages.runtime import stopping

_held: set[str] = set()
"""Homes of this process: the command takes one, and then its flow does."""
_LOCK = "runs"
_PATIENCE_SECONDS = 24 * 3600.0
_POLL_SECONDS = 5.0
"""Longer than `rlhf stop` needs to see that what it stopped has ended: it stops no other run."""


class HomeOccupiedError(UserError):
    """Another process is at work in the home. The watcher knows such a run by this name."""


@contextmanager
def occupied(store: Store) -> Iterator[None]:
    """Keep other processes of this machine from running anything in a home during the block.

    Two would share a ledger's heads, MLflow runs and a database. A shell command is refused at
    once. A deployment's run waits for a day at most, since its schedule's next one may be a week
    away.

    Raises:
        HomeOccupiedError: another process has it, which is named.
        UserError: the lock cannot be opened; its cause is the OSError.
    """
    if store.home in _held:
        yield
        return
    with ExitStack() as held:
        _take(store, held)
        _held.add(store.home)
        stopping.forget(store.scratch)  # asked of the run before
        try:
            yield
        finally:
            _held.remove(store.home)


def _take(store: Store, held: ExitStack) -> None:
    """Take the home's lock until `held` ends; see `occupied`."""
    log = _log_of_deployment()
    until = time.monotonic() + (_PATIENCE_SECONDS if log else 0.0)
    is_told = False
    while True:
        try:
            held.enter_context(store.lock(_LOCK, wait=False))
            return
        except UserError as error:
            if isinstance(error.__cause__, OSError):
                raise
            if log is None or time.monotonic() >= until:
                raise HomeOccupiedError(error.problem, error.remedy) from None
            if not is_told:
                hours = _PATIENCE_SECONDS / 3600
                log.warning("%s: waiting for it, %g hours at most", error.problem, hours)
                is_told = True
        time.sleep(_POLL_SECONDS)


def _log_of_deployment() -> "logging.Logger | logging.LoggerAdapter[logging.Logger] | None":
    """The log of the flow run that this is called in, if a deployment's; None in a shell."""
    if "prefect" not in sys.modules:  # imported here it would be before `environment.prepare`
        return None
    from prefect.context import FlowRunContext
    from prefect.logging import get_run_logger

    running = FlowRunContext.get()
    if running is None or running.flow_run is None or running.flow_run.deployment_id is None:
        return None
    return get_run_logger()


def claim(where: Places, recipe: Recipe, keep: bool = False) -> None:
    """Write down the home's recipe, which later commands take; `keep` leaves one that is there.

    With the folder of its files, for whoever reads it in another one. Raises UserError when the
    home holds another product.
    """
    refuse_other_product(where, recipe)
    if not (keep and where.recipe.is_file()):
        settled = recipe.model_copy(update={"data_dir": _data_dir(where, recipe)})
        write_durably(where.recipe, settled.model_dump_json(indent=2).encode())


def _data_dir(where: Places, recipe: Recipe) -> Path | None:
    """The folder of a recipe's files: the current one where none is named, but for a worker, whose
    runs each have a temporary one; there it stays what the home remembers."""
    if recipe.data_dir is not None:
        return recipe.data_dir.absolute()
    if _log_of_deployment() is None:
        return Path.cwd()
    try:
        before = remembered(where)
    except UserError:  # damaged, and about to be written anew
        return None
    return before.data_dir if before else None


def remembered(where: Places) -> Recipe | None:
    """The home's recipe; None when it remembers none. Raises UserError for a damaged file."""
    return load_recipe(str(where.recipe)) if where.recipe.is_file() else None


def refuse_other_product(where: Places, recipe: Recipe) -> None:
    """Raise UserError when the home holds another product: its versions would be mixed."""
    held = parse_file(where.recipe).get("product") if where.recipe.is_file() else recipe.product
    if held != recipe.product:
        raise UserError(
            f"The home {where.home} holds the iterations of {held}, and recipe "
            f"{recipe.name} is for {recipe.product}",
            "Choose another folder with --home, one for each product",
        )
