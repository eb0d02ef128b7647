"""Asking a stage at work to stop: it writes a checkpoint, then ends; the next run goes on from it.

A file in the stage's work folder asks. Training loops look at it after every step, through
`Checkpointer.maybe_save`; while none is open, `WorkDir.progress` looks and just ends. `can_stop`
tells whoever asks whether a checkpoint is to be waited for.
"""

from pathlib import Path

from data_contracts.errors import UserError

_STOP_FILE = "stop"
_OPEN_FILE = "stoppable"


class Stopped(UserError):  # noqa: N818 - it was wanted
    """A stage ended because it was asked to; running it again goes on."""


def stopped(where: str) -> Stopped:
    """What a stage raises that has been asked to stop; `where` says how far it came."""
    return Stopped(f"Stopped on request, {where}", "The same command goes on from there")


def ask(work: Path) -> None:
    """Ask the stage that runs in a work folder to stop; harmless when none does."""
    if work.is_dir():
        (work / _STOP_FILE).touch()


def is_asked(work: Path) -> bool:
    """Whether it has been asked."""
    return (work / _STOP_FILE).exists()


def forget(work: Path) -> None:
    """Before a new attempt: neither asked, nor able to stop yet."""
    (work / _STOP_FILE).unlink(missing_ok=True)
    (work / _OPEN_FILE).unlink(missing_ok=True)


def can_stop(work: Path) -> bool:
    """Whether a training loop is open, which writes a checkpoint when it is asked to stop."""
    return (work / _OPEN_FILE).exists()


def mark_open(work: Path, is_open: bool) -> None:
    """Say that a training loop has begun, or ended."""
    if is_open:
        work.mkdir(parents=True, exist_ok=True)
        (work / _OPEN_FILE).touch()
    else:
        (work / _OPEN_FILE).unlink(missing_ok=True)
