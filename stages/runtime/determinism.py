"""Seeds and random states: on CPU the same seed and number of threads give the same bytes."""

import random
from typing import Any, cast

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch, and forbid operations that add in a random order on CPU.

    On CUDA deterministic kernels cost speed and need an environment variable set before start, so
    there a re-run is equal up to rounding only.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # Without it the backward of x[rows] adds rows in whatever order the threads come.
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    # Deterministic mode also fills every torch.empty with NaN, which nothing here reads.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore


def random_states() -> dict[str, Any]:
    """The state of every global generator, of types that torch.load(weights_only=True) accepts."""
    kind, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` took."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
