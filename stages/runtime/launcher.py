"""Run a stage in several processes: torchrun on this machine, deepspeed's launcher on many.

The launcher runs under a supervisor (`stages.runtime.supervisor`), writes to the attempt's log, and
leaves no rank behind, however the process that waits here ends.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_contracts.errors import UserError
from stages.runtime.supervisor import GRACE_SECONDS, WORK_VARIABLE, end_all


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
    max_retries: int = 0
    """Further attempts of a launched stage that crashed, each from the newest whole checkpoint."""
    timeout_seconds: float | None = None
    """How long one attempt may take."""
    uses_gpus: bool = True
    """Whether the stage takes cards, where there are any."""
    patience_minutes: float | None = None
    """How long ranks wait for one another; the default of `distributed` when None."""

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


def run_launcher(
    module: str, arguments: Sequence[str], log: Path, work: Path, launch: Launch
) -> int:
    """Run `python -m module` on every rank and wait; all their output goes to the log.

    Returns the exit status. Any exception here (Ctrl-C, a cancelled task, and TimeoutExpired after
    the launch's timeout) ends the ranks first, and they write a checkpoint if they can.

    Args:
        module: what each rank runs.
        arguments: of the module.
        log: file that takes all output.
        work: the stage's work folder, by which its processes are known.
        launch: on how many processes.
    """
    supervisor = [sys.executable, "-m", "stages.runtime.supervisor", str(os.getpid()), str(work)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*supervisor, *launcher_command(module, launch), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(launch) | {WORK_VARIABLE: str(work)},
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the ranks
        )
        try:
            return process.wait(launch.timeout_seconds)
        finally:
            try:
                _end(process)
            finally:
                end_all(work)  # a supervisor that was killed could not


def launcher_command(module: str, launch: Launch) -> list[str]:
    """The launcher's module and arguments; the stage's own arguments follow.

    Raises UserError for a hostfile that is not there: DeepSpeed's launcher would go on with this
    machine alone, and say so in a log.
    """
    if launch.hostfile is not None:
        if not launch.hostfile.is_file():
            raise UserError(
                f"The hostfile {launch.hostfile} does not exist",
                "Correct launch.hostfile, or leave it out to run on this machine alone",
            )
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
    """Have the supervisor end the ranks; it is killed itself should it not answer."""
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
