"""Every process below this one, also those that tried to leave: a program that is ended ends whole.

A process that asks to be a subreaper inherits the orphans among its descendants, so none can get
out of its reach by a session of its own or by the death of its parent.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.1


def inherit_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(except_below: Collection[int] = ()) -> list[int]:
    """Living processes below this one, those below `except_below` and these themselves left out."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
            # "pid (name) state ppid …": the name may hold spaces and brackets
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(folder.name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child not in except_below:
                found.append(child)
                waiting.append(child)
    return found


def end_descendants(grace_seconds: float, except_below: Collection[int] = ()) -> None:
    """TERM to all of them, KILL to those that are left after the grace; returns with none left."""
    deadline = time.monotonic() + grace_seconds
    asked: set[int] = set()
    while left := descendants(except_below):
        for pid in left:
            if time.monotonic() >= deadline:
                _signal(pid, signal.SIGKILL)
            elif pid not in asked:
                asked.add(pid)
                _signal(pid, signal.SIGTERM)
        reap(except_below)
        time.sleep(_POLL_SECONDS)
    reap(except_below)


def reap(except_pids: Collection[int] = ()) -> None:
    """Take the exit status of inherited children that have ended: nobody else will."""
    while True:
        try:
            # without taking it: a Popen of ours wants its own child's status
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in except_pids:
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(ended.si_pid, os.WNOHANG)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
