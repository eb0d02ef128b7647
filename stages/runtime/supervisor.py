"""Between the process of a stage and its ranks: whatever ends, no rank is left behind.

    python -m stages.runtime.supervisor PARENT_PID WORK_FOLDER module [argument ...]

The supervisor leads a session of its own, starts `python -m module` (torchrun, or DeepSpeed's
launcher) in another, and waits for it. Asked to end by SIGTERM, which the kernel also sends when
the parent is gone, it first asks the ranks for a checkpoint (`stages.runtime.stopping`), gives them
a grace, then ends them by TERM and by KILL. All of them are found by a variable that they inherit,
so one whose own parent was killed is found too. No torch here: it starts at once.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.runtime import stopping

WORK_VARIABLE = "RLHF_WORK_FOLDER"
"""Set for everything that runs in a stage's work folder."""
CHECKPOINT_SECONDS = 20.0
"""For a checkpoint, once the supervisor is asked to end. Prefect allows 30 s for everything."""
_OWN_END_SECONDS = 3.0
"""For ranks that have their checkpoint, to say so and end by themselves."""
_TERM_SECONDS = 3.0
"""From TERM to KILL."""
GRACE_SECONDS = CHECKPOINT_SECONDS + _OWN_END_SECONDS + _TERM_SECONDS + 1.0
"""After which a supervisor that was asked to end has ended."""
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1


def main(parent: int, work: Path, command: list[str]) -> int:
    """Run the command under supervision; its exit status, 128 + the signal's if one ended it."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A flag only: whoever polls from a handler can find the child's lock held by the main code.
        signal.signal(number, lambda signal_number, _frame: asked.append(signal_number))
    die_with_parent(parent)
    prctl = _prctl()
    launcher = subprocess.Popen(
        command, start_new_session=True, preexec_fn=lambda: _ask_for_term(prctl)
    )
    while launcher.poll() is None and not asked:
        time.sleep(_POLL_SECONDS)
    if asked and stopping.can_stop(work):
        stopping.ask(work)
        _wait(lambda: not stopping.can_stop(work), CHECKPOINT_SECONDS)
        if not stopping.can_stop(work):
            _wait(lambda: launcher.poll() is not None, _OWN_END_SECONDS)
    end_all(work)
    status = launcher.wait()
    return status if status >= 0 else 128 - status


def end_all(work: Path) -> None:
    """End every process of a stage's work folder but this one: TERM, a moment, KILL."""
    for number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _TERM_SECONDS)):
        for pid in processes_in(work):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if _wait(lambda: not processes_in(work), seconds):
            return


def wait_for_end(work: Path) -> None:
    """Wait for what a killed parent has left to write its checkpoint and end; then end the rest."""
    _wait(lambda: not processes_in(work), GRACE_SECONDS)
    end_all(work)


def processes_in(work: Path) -> list[int]:
    """Living processes that were started for a stage's work folder, this one left out."""
    mark = f"{WORK_VARIABLE}={work}".encode()
    return [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if int(folder.name) != os.getpid() and mark in _environment(folder)
    ]


def _environment(folder: Path) -> list[bytes]:
    try:
        return (folder / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return []


def _wait(is_over: Callable[[], bool], seconds: float) -> bool:
    """Whether it was over within so many seconds."""
    deadline = time.monotonic() + seconds
    while not is_over():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, for whatever reason."""
    if sys.platform != "linux":
        return
    _ask_for_term(_prctl())
    if os.getppid() != parent:  # it ended before it was asked
        os.kill(os.getpid(), signal.SIGTERM)


def _prctl() -> Callable[..., Any]:
    return ctypes.CDLL(None, use_errno=True).prctl


def _ask_for_term(prctl: Callable[..., Any]) -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), [sys.executable, "-m", *sys.argv[3:]]))
