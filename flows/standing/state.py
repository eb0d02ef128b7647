"""Whether the servers of a home are up, where, and whose they are: a lock and a small file.

The kernel drops the lock with the process, so a file that is left by a kill is not believed.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from data_contracts.base import Contract
from data_contracts.durable import disk_error, write_durably
from data_contracts.errors import UserError
from data_contracts.locks import locked, owner_of
from flows.environment import Places
from flows.standing.addresses import Addresses


class Standing(Contract):
    """The servers of a home and the process that keeps them."""

    pid: int
    host: str
    """Name of the machine."""
    since: str
    """UTC, ISO 8601."""
    ready: bool
    prefect: str
    mlflow: str
    annotation: str
    """Base URLs."""


@contextmanager
def standing(where: Places, at: Addresses) -> Iterator[None]:
    """Be the one who keeps this home's servers, during the block.

    Raises UserError with the first one's pid when there is one already.
    """
    refuse_second(where)
    with locked(_lock(where), f"the lock on the servers of {where.home}", wait=False):
        write(where, at, ready=False)
        try:
            yield
        finally:
            _file(where).unlink(missing_ok=True)


def refuse_second(where: Places) -> None:
    """Raise UserError with the pid of the process that keeps this home's servers already."""
    if (other := read(where)) is not None:
        raise UserError(
            f"The servers of {where.home} are up already: process {other.pid} on {other.host} "
            f"since {other.since}, Prefect at {other.prefect}",
            "Use them, or end them first with `rlhf down`",
        )


def write(where: Places, at: Addresses, *, ready: bool) -> None:
    """Say where the servers are."""
    state = Standing(
        pid=os.getpid(),
        host=socket.gethostname(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        ready=ready,
        prefect=at.prefect,
        mlflow=at.mlflow,
        annotation=at.annotation,
    )
    write_durably(_file(where), json.dumps(state.model_dump(), indent=2).encode())


def read(where: Places) -> Standing | None:
    """The servers of a home, or None when none are up."""
    try:
        state = Standing.model_validate_json(_file(where).read_bytes())
    except (OSError, ValidationError):
        return None
    return state if is_held(where) else None


def is_held(where: Places) -> bool:
    """Whether a living process keeps the servers of a home; reads alone, so anybody may ask.

    Raises UserError when the lock may not be read.
    """
    try:
        return owner_of(_lock(where)) is not None
    except OSError as error:
        raise disk_error("open the lock", _lock(where), error) from error


def _lock(where: Places) -> Path:
    return where.local / "locks" / "servers.lock"


def _file(where: Places) -> Path:
    return where.local / "servers.json"
