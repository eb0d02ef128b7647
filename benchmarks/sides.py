"""Two or more sides of a comparison, each in a process of its own, of which only one works.

Their own processes, because what one side sets up (a deterministic mode, a process group, one of
two versions of a library) must not reach the other.
"""

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.machine import Device
from benchmarks.peers import Peer
from benchmarks.turns import Round, Turns
from stages.runtime.distributed import LAUNCHER_VARIABLES

_PATIENCE_SECONDS = 280
"""Longest that a side may take to set up, or for one round."""

_FAREWELL_SECONDS = 20

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


@dataclass(frozen=True)
class Side:
    """One way to do the benchmark's work."""

    name: str
    run: Callable[[Turns, Any], None]
    """A top-level function of the turns and the benchmark's size. It imports its peer itself."""
    settings: str = ""
    peer: Peer | None = None
    target: float | None = None
    """How many times as fast as this side we mean to be."""


class SideFailedError(RuntimeError):
    """A side raised, or took too long."""


def in_turn(
    sides: Sequence[Side],
    size: Any,
    *,
    num_rounds: int,
    laps_per_round: int,
    num_threads: int,
    peers: Path,
    device: Device = "cpu",
) -> list[list[Round]]:
    """The measured rounds of each side: first round of every side, second round of every side, …

    A race on the CPU hides the machine's GPUs: stages and trainers would take one by themselves.
    Raises SideFailedError with what the side printed.
    """
    os.environ.update(_ENVIRONMENT, OMP_NUM_THREADS=str(num_threads))
    for variable in (*LAUNCHER_VARIABLES, "LOCAL_RANK"):
        os.environ.pop(variable, None)  # a side would take itself for a rank
    # One card: with more, Trainer would split each batch over them, and TRL refuses.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0] if device == "cuda" else ""
    workers: list[_Worker] = []
    try:
        for side in sides:  # one after the other: setting up is work, too
            worker = _Worker(side, size, (num_rounds, laps_per_round), num_threads, peers)
            workers.append(worker)
            worker.until_ready()
        rounds = [[worker.round() for worker in workers] for _ in range(1 + num_rounds)]
    finally:
        for worker in workers:
            worker.end()
    return [list(of_side) for of_side in zip(*rounds[1:], strict=True)]


class _Worker:
    """The process of one side, as the parent sees it."""

    def __init__(
        self, side: Side, size: Any, counts: tuple[int, int], num_threads: int, peers: Path
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = side.name
        self._connection, theirs = context.Pipe()
        self._log = tempfile.NamedTemporaryFile(prefix="benchmark-", suffix=".log")  # noqa: SIM115
        peer_folder = str(side.peer.folder(peers)) if side.peer else None
        # Pickled by hand: it names a function of a module that must not be imported before the
        # peer's folder is on the path.
        work = pickle.dumps((side.run, size))
        self._process = context.Process(
            target=_work,
            args=(theirs, work, counts, num_threads, peer_folder, self._log.name),
            daemon=False,  # a side of several ranks starts processes itself
        )
        self._process.start()
        theirs.close()

    def until_ready(self) -> None:
        """Wait for the side's `Turns.start`."""
        self._receive()

    def round(self) -> Round:
        """Let the side work for one round."""
        self._connection.send("go")
        result = self._receive()
        assert isinstance(result, Round)
        return result

    def end(self) -> None:
        """Let the process finish what follows its last lap, or stop it where it waits."""
        self._connection.close()
        self._process.join(_FAREWELL_SECONDS)
        self._process.kill()
        self._process.join()
        self._log.close()

    def _receive(self) -> Any:
        try:
            if self._connection.poll(_PATIENCE_SECONDS):
                message = self._connection.recv()
                if not isinstance(message, _Failure):
                    return message
                raise SideFailedError(f"{self._name}: {message.text}")
            problem = f"no answer for {_PATIENCE_SECONDS} s"
        except EOFError:
            problem = "the process ended"
        raise SideFailedError(
            f"{self._name}: {problem}\n{Path(self._log.name).read_text()[-4000:]}"
        )


@dataclass(frozen=True)
class _Failure:
    text: str


def _work(
    connection: Connection,
    work: bytes,
    counts: tuple[int, int],
    num_threads: int,
    peer_folder: str | None,
    log: str,
) -> None:
    """The body of a side's process."""
    _redirect_output(log)
    if peer_folder is not None:
        sys.path.insert(0, peer_folder)
    import torch

    torch.set_num_threads(num_threads)
    is_first = True

    def wait() -> None:
        nonlocal is_first
        if is_first:
            connection.send("ready")
            is_first = False
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the card is another side's now
        connection.recv()

    try:
        run, size = pickle.loads(work)
        settle = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        run(Turns(*counts, wait, connection.send, settle), size)
    except BaseException:
        connection.send(_Failure(traceback.format_exc()))


def _redirect_output(log: str) -> None:
    """What libraries print goes to a file, which is shown if the side fails."""
    sys.stdout.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
