"""One stage at a time on a GPU: a lock on this machine for each card that a stage takes.

A scheduler's concurrency limits count its own runs; a run that is being cancelled, one by hand, or
one of another home is not among them. The kernel frees the locks when their owner dies.
"""

import gc
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch

from data_contracts.durable import disk_error
from data_contracts.locks import locked

LOCKS_VARIABLE = "RLHF_GPU_LOCKS"
"""A folder for the locks that all users and containers of the machine share, instead of the
temporary folder's `rlhf-gpus`."""


def visible_gpus() -> list[str]:
    """This process's cards, as CUDA_VISIBLE_DEVICES names them, else by index; none without CUDA.

    Whoever shares a machine has to name a card in one way: by index, or by UUID.
    """
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(i) for i in range(torch.cuda.device_count())]
    return [name.strip() for name in named.split(",")][: torch.cuda.device_count()]


@contextmanager
def reserved(gpus: Sequence[str]) -> Iterator[None]:
    """Hold these cards during the block; waits for another stage to end, and says for whom."""
    folder = Path(os.environ.get(LOCKS_VARIABLE) or Path(tempfile.gettempdir(), "rlhf-gpus"))
    with ExitStack() as stack:
        for gpu in sorted(gpus):  # in one order, or two stages could wait for each other
            path = folder / f"gpu-{gpu.replace('/', '_')}.lock"
            _make_for_all(path)
            stack.enter_context(locked(path, f"GPU {gpu} of this machine"))
        yield


@contextmanager
def gpu_memory_returned() -> Iterator[None]:
    """At the end of the block the process keeps nothing on its GPU that nobody uses.

    Whoever takes the card next may be another process, which cannot have what this one's allocator
    caches; and DeepSpeed's engines are cycles, which live on until somebody collects them.
    """
    try:
        yield
    finally:
        if torch.cuda.is_initialized():
            gc.collect()
            gc.collect()  # finalisers of the first round let go of what they held
            torch.cuda.empty_cache()


def _make_for_all(path: Path) -> None:
    """Make the lock's file so that other users of the machine can take it as well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        if not path.exists():
            raise disk_error("make the lock", path, error) from error
    for file, mode in ((path, 0o666), (path.parent, 0o1777)):
        with suppress(PermissionError):  # another user's, who has done this
            file.chmod(mode)
