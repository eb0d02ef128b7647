"""How MLflow is reached: the import that takes seconds, its database, its pages of answers."""

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flows.environment import Places

if TYPE_CHECKING:
    from mlflow.store.entities import PagedList

T = TypeVar("T")

_LONGEST_REASON = 200


def load_mlflow(where: Places) -> None:
    """Import what records will need: seconds, for a caller who waits for something else anyway."""
    is_database = where.mlflow.startswith("sqlite:")
    importlib.import_module("mlflow.store.tracking.sqlalchemy_store" if is_database else "mlflow")


def ensure_database(path: Path) -> None:
    """Make MLflow's database, when there is none, whole or not at all: one whose tables a kill or a
    full disk left half made MLflow refuses for good."""
    if path.exists():
        return
    from mlflow import MlflowClient

    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.unlink(missing_ok=True)
    try:
        MlflowClient(f"sqlite:///{unfinished}").search_experiments()
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def all_pages(search: "Callable[[str | None], PagedList[T]]") -> Iterator[T]:
    """All that a search finds, asked for a page at a time; `search` takes the page's token."""
    token: str | None = None
    while token != "":
        page = search(token)
        yield from page
        token = page.token or ""


def reason_of(error: Exception) -> str:
    """What MLflow's client says of a failure, on one line: it may quote a whole page."""
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
