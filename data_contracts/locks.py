"""Locks between processes of one machine (or of one shared file system that honours flock).

The kernel releases a flock with its owner's last file descriptor, so `kill -9` leaves none behind.
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from data_contracts.durable import disk_error
from data_contracts.errors import UserError

_LOGGER = logging.getLogger(__name__)
_QUIET_SECONDS = 1.0
_POLL_SECONDS = 0.1


@contextmanager
def locked(path: Path, what: str, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock during the block; says whom it waits for after one second.

    Raises:
        UserError: the lock cannot be opened, or another has it and `wait` is False.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise disk_error("open the lock", path, error) from error
    with file:
        if wait:
            _acquire(file, what)
        elif not _try_for_a_moment(file):
            raise UserError(
                f"{what[0].upper()}{what[1:]} is held by {_owner(file)}",
                "Wait until it ends, or end it; what it has finished is reused",
            )
        try:
            _write_owner(file)
            yield
        finally:
            file.truncate(0)
            # Explicitly: a forked child that inherited the descriptor must not keep the lock.
            fcntl.flock(file, fcntl.LOCK_UN)


def _acquire(file: TextIO, what: str) -> None:
    started, told = time.monotonic(), False
    while not _try_lock(file):
        if not told and time.monotonic() - started >= _QUIET_SECONDS:
            _LOGGER.warning("Waiting for %s, held by %s", what, _owner(file))
            told = True
        time.sleep(_POLL_SECONDS)


def _try_for_a_moment(file: TextIO) -> bool:
    """Outlasts one that only looks whether the lock is held (`owner_of`)."""
    return _try_lock(file) or (time.sleep(_POLL_SECONDS) or _try_lock(file))


def owner_of(path: Path) -> str | None:
    """Who holds the lock in this file now ("process 71 on a since …"), or None when nobody does."""
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _owner(file)
        fcntl.flock(file, fcntl.LOCK_UN)
    return None


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_owner(file: TextIO) -> None:
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    file.truncate(0)
    with suppress(OSError):  # the disk is full: the lock holds without its owner's name
        os.write(file.fileno(), json.dumps(owner).encode())  # unbuffered, or close() tries again


def _owner(file: TextIO) -> str:
    file.seek(0)
    try:
        owner = json.load(file)
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # it has just taken the lock and not yet written its name
