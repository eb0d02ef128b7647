"""Import a library without its chatter, and without what it would import for nothing."""

import contextlib
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def known_warnings() -> Iterator[None]:
    """Silence what DeepSpeed 0.19 is known to call of torch 2.13's deprecations, and only that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        yield


@contextlib.contextmanager
def absent(package: str) -> Iterator[None]:
    """Let a package seem not to be installed: DeepSpeed's autotuner takes 1 s for MLflow."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # pyright: ignore[reportArgumentType] - python's own sign for it
    try:
        yield
    finally:
        del sys.modules[package]
