"""Attempts at one stage key: their folders, what is kept of them, and why one failed.

work/<key>/attempt-1/   config.json  attempt.json  metrics.jsonl  progress.json
                        log.txt (launched)  error-00000.json (failed)  outputs/ (while it runs)
           attempt-2/   …
           checkpoints/ shared: the next attempt resumes from them
"""

import json
import logging
import os
import shutil
import socket
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_contracts.base import StageConfig
from data_contracts.durable import write_durably
from data_contracts.errors import UserError
from data_contracts.store import Store
from stages.runtime import stopping
from stages.runtime.stopping import Stopped

LOG = logging.getLogger(__name__)
CONFIG_FILE = "config.json"
LOG_FILE = "log.txt"
_ABOUT_FILE = "attempt.json"


class StageFailed(UserError):  # noqa: N818 - it names what happened to a stage
    """A launched stage ended without a result."""


@dataclass(frozen=True)
class Failure:
    """What one rank says about its end."""

    rank: int
    problem: str
    remedy: str
    """Empty when the user can do nothing about the problem but read the log."""
    traceback: str
    time: float
    stopped: bool = False
    """It was asked to end."""


def new_attempt(store: Store, key: str, config: StageConfig, forced: bool) -> Path:
    """Make the next attempt's folder and clear away what earlier ones left half-done.

    A forced attempt starts from nothing, unless the one before it was forced and did not finish:
    then it resumes that one. Called by one process that holds the key's lock.
    """
    earlier = store.attempts(key)
    stopping.forget(store.work(key))
    for attempt in earlier:
        clear_outputs(attempt)
    # an attempt that a full disk kept from writing a word does not count
    abouts = [about for attempt in earlier if (about := _about(attempt))]
    if forced and not (abouts and abouts[-1].get("forced")):
        shutil.rmtree(store.work(key) / "checkpoints", ignore_errors=True)
    attempt = store.new_attempt(key)
    write_durably(attempt / CONFIG_FILE, config.model_dump_json(indent=1).encode())
    about = {"forced": forced, "started_at": time.time(), "host": socket.gethostname()}
    write_durably(attempt / _ABOUT_FILE, json.dumps(about | {"process": os.getpid()}).encode())
    return attempt


def close_attempt(attempt: Path) -> None:
    """After success: the checkpoints have served, and the outputs are in the store."""
    shutil.rmtree(attempt.parent / "checkpoints", ignore_errors=True)
    clear_outputs(attempt)
    about = _about(attempt) | {"forced": False}  # a later forced run starts from nothing
    write_durably(attempt / _ABOUT_FILE, json.dumps(about).encode())


def abandon_attempt(attempt: Path, rank_index: int, error: BaseException) -> None:
    """After failure: say why, and leave no half-written output behind."""
    clear_outputs(attempt)
    failure = {
        "rank": rank_index,
        "problem": error.problem if isinstance(error, UserError) else _summary(error),
        "remedy": error.remedy if isinstance(error, UserError) else "",
        "traceback": "".join(traceback.format_exception(error)),
        "time": time.time(),
        "stopped": isinstance(error, Stopped),
    }
    try:
        (attempt / f"error-{rank_index:05d}.json").write_text(json.dumps(failure, indent=1))
    except OSError:  # the disk is full, which may be the very error
        LOG.warning("Could not write why rank %d failed to %s", rank_index, attempt)


def clear_outputs(attempt: Path) -> None:
    """Remove the folders that outputs are written to before they are published."""
    shutil.rmtree(attempt / "outputs", ignore_errors=True)


def first_failure(attempt: Path) -> Failure | None:
    """What failed first: a rank's own trouble comes before that of the ranks that waited for it."""
    failures = []
    for path in attempt.glob("error-*.json"):
        try:
            failures.append(Failure(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):  # cut short by a full disk
            continue
    return min(failures, key=lambda f: (not f.remedy, f.time), default=None)


def _summary(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def _about(attempt: Path) -> dict[str, Any]:
    try:
        return json.loads((attempt / _ABOUT_FILE).read_text())
    except (OSError, ValueError):  # killed while it was being made
        return {}
