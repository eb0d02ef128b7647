"""Keep one program until it ends or is to end, and leave no process of it behind.

    python -m flows.standing.keeper PARENT_PID GRACE_SECONDS module [argument ...]

The program runs in a session of its own. TERM to the keeper, or the death of the process that
started it, becomes TERM to the program, and KILL after the grace to whatever is left of it. If the
keeper itself is killed, the kernel sends TERM to the program.
"""

import os
import signal
import subprocess
import sys
import time

from flows.standing.descendants import end_descendants, inherit_orphans, reap
from stages.runtime.supervisor import die_with_parent

PROGRAM = "program"
"""In place of the grace: the second half of the arrangement, which becomes the program."""
_POLL_SECONDS = 0.1


def keep(parent: int, grace_seconds: float, module: str, arguments: list[str]) -> int:
    """Run the program until it ends or this process is asked to; returns its exit status."""
    asked: list[int] = []
    # a handler must only set a flag: what it would wait for may be locked below it
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    # not SIG_IGN, which the program would inherit: Prefect's worker ends by an interrupt of its own
    signal.signal(signal.SIGINT, lambda *_: None)
    inherit_orphans()
    die_with_parent(parent)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "flows.standing.keeper",
            str(os.getpid()),
            PROGRAM,
            module,
            *arguments,
        ],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not asked:
        reap([process.pid])
        time.sleep(_POLL_SECONDS)
    if process.poll() is None:
        _ask(process, grace_seconds)
    end_descendants(grace_seconds)
    return process.returncode or 0


def _ask(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """TERM to the program alone first: it ends its own children in the order that it likes."""
    process.terminate()
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def become(parent: int, module: str, arguments: list[str]) -> None:
    """Be the program: it dies with its keeper."""
    die_with_parent(parent)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


if __name__ == "__main__":
    parent_pid, second, program, *rest = sys.argv[1:]
    if second == PROGRAM:
        become(int(parent_pid), program, rest)
    status = keep(int(parent_pid), float(second), program, rest)
    sys.exit(status if status >= 0 else 128 - status)
