"""The machine that a figure belongs to: its name, the libraries, and what it can do at most."""

import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

_DISTRIBUTIONS = ("torch", "deepspeed", "transformers", "numpy", "pyarrow", "pydantic")
_PRODUCT_SIDE = 2048
_REPEATS = 8


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran."""

    name: str
    versions: str
    num_threads: int
    flops_per_second: float
    """Of one large fp32 matrix product with the benchmark's number of threads."""


def describe(num_threads: int) -> Machine:
    """This machine; its arithmetic rate is measured now, which takes a second."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _DISTRIBUTIONS)
    return Machine(
        name=f"{_processor()}, {num_threads} threads, {_memory_gib():.0f} GiB",
        versions=f"Python {platform.python_version()}, {versions}",
        num_threads=num_threads,
        flops_per_second=_matmul_rate(num_threads),
    )


def _matmul_rate(num_threads: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    a, b = torch.randn(2, _PRODUCT_SIDE, _PRODUCT_SIDE, generator=torch.Generator().manual_seed(0))
    shortest = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.mm(a, b)
        shortest = min(shortest, time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2 * _PRODUCT_SIDE**3 / shortest


def _processor() -> str:
    if sys.platform != "linux":
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
