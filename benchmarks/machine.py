"""The machine that a figure belongs to: its name, the libraries, and what it can do at most."""

import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

Device = Literal["cpu", "cuda"]

_DISTRIBUTIONS = ("torch", "deepspeed", "transformers", "numpy", "pyarrow", "pydantic")
_PRODUCT_SIDES = {"cpu": 2048, "cuda": 8192}
_REPEATS = 8


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran."""

    name: str
    versions: str
    num_threads: int
    flops_per_second: float
    """Of one large matrix product: in fp32 with the benchmark's number of threads, on a GPU in
    bf16."""
    device: Device = "cpu"


def describe(num_threads: int, device: Device = "cpu") -> Machine:
    """This machine; its arithmetic rate is measured now, which takes a second."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _DISTRIBUTIONS)
    name = f"{_processor()}, {num_threads} threads, {_memory_gib():.0f} GiB"
    if device == "cuda":
        name = f"{torch.cuda.get_device_name()}; {name}"
    return Machine(
        name=name,
        versions=f"Python {platform.python_version()}, {versions}",
        num_threads=num_threads,
        flops_per_second=_matmul_rate(num_threads, device),
        device=device,
    )


def _matmul_rate(num_threads: int, device: Device) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    side = _PRODUCT_SIDES[device]
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    a, b = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    shortest = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        shortest = min(shortest, time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2 * side**3 / shortest


def _processor() -> str:
    if sys.platform != "linux":
        return platform.processor()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
