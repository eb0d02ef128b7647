"""Run a stage in several processes: torchrun on this machine, deepspeed's launcher on many.

The launcher lives in a process group of its own, writes to the attempt's log, and dies with the
process that started it, even when that one is killed: the kernel then sends it SIGTERM, and it ends
its ranks. Run as a program, this module is that arrangement's first half:

    python -m stages.runtime.launcher PARENT_PID module [argument ...]
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_GRACE_SECONDS = 20.0
"""Between asking the launcher to end its ranks and killing it; Prefect allows 30 s in all."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Launch:
    """On how many processes a stage runs. The default is this very process."""

    num_processes: int = 1
    """Ranks, one a GPU; with a hostfile, ranks on each machine."""
    hostfile: Path | None = None
    """Machines in DeepSpeed's format ("host slots=8" a line); RLHF_HOME is on a disk they share."""
    num_threads: int | None = None
    """Threads of each process inside torch; all cores shared out evenly when None.

    A re-run on CPU is bitwise the same only with the same number: sums are split over threads."""

    def __post_init__(self) -> None:
        if self.num_processes < 1 or (self.num_threads is not None and self.num_threads < 1):
            raise ValueError("num_processes and num_threads must be at least 1")

    @property
    def threads_of_a_rank(self) -> int:
        """Threads of each of several processes."""
        return self.num_threads or max(1, (os.cpu_count() or 1) // self.num_processes)

    @property
    def inline(self) -> bool:
        """Whether the stage runs in the calling process."""
        return self.num_processes == 1 and self.hostfile is None


def run_launcher(module: str, arguments: Sequence[str], log: Path, launch: Launch) -> int:
    """Run `python -m module` on every rank and wait; all their output goes to the log.

    Returns the exit status. Any exception here (Ctrl-C, a cancelled task) ends the ranks first.
    """
    command = [sys.executable, "-m", __name__, str(os.getpid()), *launcher_command(module, launch)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(launch),
            process_group=0,  # Ctrl-C reaches this process alone, which then ends the ranks
        )
        try:
            return process.wait()
        except BaseException:
            _end(process)
            raise


def launcher_command(module: str, launch: Launch) -> list[str]:
    """The launcher's module and arguments; the stage's own arguments follow."""
    if launch.hostfile is not None:
        return [
            *("deepspeed.launcher.runner", "--hostfile", str(launch.hostfile)),
            *("--num_gpus", str(launch.num_processes), "--no_local_rank", "--module", module),
        ]
    ranks = str(launch.num_processes)
    return ["torch.distributed.run", "--standalone", "--nproc_per_node", ranks, "-m", module]


def _environment(launch: Launch) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": str(launch.threads_of_a_rank),
        "PYTHONUNBUFFERED": "1",
        # The ranks import what this process imports, wherever it was started.
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """TERM to the launcher's group, and KILL after a grace: ranks die with their launcher."""
    for signal_number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, signal_number)
        except ProcessLookupError:
            return
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue


def kill_in_log(log: Path) -> str:
    """That a rank was killed, as the launcher's report at the log's end tells it, or ""."""
    codes = [int(code) for code in re.findall(r"exitcode\s*:\s*(-?\d+)", _tail(log))]
    if -signal.SIGKILL in codes:
        return "a process was killed (SIGKILL), most likely because the machine ran out of memory"
    # TERM is what the launcher itself sends to the ranks that are left.
    killed = [-code for code in codes if code < 0 and code != -signal.SIGTERM]
    return f"a process was killed by {signal.Signals(killed[0]).name}" if killed else ""


def error_in_log(log: Path) -> str:
    """The last error named in the log, else its last line."""
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\w(Error|Exception)\b", line)]
    return (errors or lines or ["the log is empty"])[-1]


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-20_000:]


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, for whatever reason."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before it was asked
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
