"""Attempts at a stage in ranks of its own: until one succeeds, or trying again is of no use."""

import contextlib
import logging
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from data_contracts.errors import UserError
from data_contracts.store import Manifest, Store, attempt_number
from stages.runtime import attempts
from stages.runtime.attempts import StageFailed
from stages.runtime.checkpoints import checkpoint_folders
from stages.runtime.launcher import Launch, error_in_log, kill_in_log, run_launcher
from stages.runtime.stopping import Stopped

LOG = logging.getLogger(__name__)
_UNTIL_HEARD_SECONDS = 60.0
"""Pause before a stage of this process is told again that its time is up."""


def run_attempts(
    name: str,
    module: str,
    new_attempt: Callable[[], Path],
    store: Store,
    key: str,
    launch: Launch,
) -> Manifest:
    """The manifest of the first attempt that succeeds; each goes on from the newest checkpoint.

    A crash is followed by another attempt, at most `launch.max_retries` times, unless the same one
    has come back without a checkpoint in between.

    Args:
        name: of the stage.
        module: its dotted name.
        new_attempt: makes the next attempt's folder.
        store: where the ranks commit the result.
        key: the run's.
        launch: on how many processes, how often, how long.

    Raises:
        UserError: what the user has to mend is not tried again.
        Stopped: it was asked to.
        StageFailed: the last attempt failed.
    """
    checkpoints = store.work(key) / "checkpoints"
    earlier: tuple[str, list[Path]] | None = None
    most = launch.max_retries + 1
    for number in range(1, most + 1):
        try:
            return _attempt(name, module, new_attempt(), store, launch)
        except StageFailed as error:
            now = (error.problem, checkpoint_folders(checkpoints))
            if number == most or now == earlier:
                raise
            earlier = now
            LOG.warning("%s Attempt %d of at most %d follows.", error, number + 1, most)
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def time_limit(name: str, launch: Launch) -> Iterator[None]:
    """End a stage of this process after the launch's timeout; Python signals the main thread."""
    on_main = threading.current_thread() is threading.main_thread()
    if launch.timeout_seconds is None or not on_main:
        yield
        return

    def give_up(*_: object) -> None:
        raise _timed_out(name, launch)

    before = signal.signal(signal.SIGALRM, give_up)
    # Again and again: an exception that meets a destructor is lost.
    signal.setitimer(signal.ITIMER_REAL, launch.timeout_seconds, _UNTIL_HEARD_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _attempt(name: str, module: str, attempt: Path, store: Store, launch: Launch) -> Manifest:
    key, log = attempt.parent.name, attempt / attempts.LOG_FILE
    arguments = [
        *("--config", str(attempt / attempts.CONFIG_FILE), "--home", store.home),
        *("--attempt", str(attempt), "--num-threads", str(launch.threads_of_a_rank)),
    ]
    if launch.patience_minutes is not None:  # an argument: not every launcher hands on variables
        arguments += ["--patience-minutes", str(launch.patience_minutes)]
    try:
        status = run_launcher(module, arguments, log, attempt.parent, launch)
    except subprocess.TimeoutExpired:
        attempts.clear_outputs(attempt)
        raise _timed_out(name, launch) from None
    manifest = store.manifest(key) if status == 0 else None
    if manifest is None or manifest.attempt != attempt_number(attempt):
        raise _failure(name, attempt, log)
    return manifest


def _timed_out(name: str, launch: Launch) -> StageFailed:
    return StageFailed(
        f"Stage {name} was still at work after its limit of {launch.timeout_seconds:g} s",
        "Run it again, it goes on from its newest checkpoint; or raise launch.timeout_minutes",
    )


def _failure(name: str, attempt: Path, log: Path) -> UserError:
    """A rank's own UserError as it was, or the cause and where to read more."""
    attempts.clear_outputs(attempt)
    failure = attempts.first_failure(attempt)
    if failure is not None and failure.remedy:
        kind = Stopped if failure.stopped else UserError
        return kind(failure.problem, failure.remedy)
    # Ranks that live on when one is killed complain of a lost connection: not the cause.
    cause = kill_in_log(log)
    if not cause:
        cause = f"rank {failure.rank}: {failure.problem}" if failure else error_in_log(log)
    return StageFailed(f"Stage {name} failed: {cause}", f"The whole log is {log}")
