"""Bytes that tensors really occupy: every storage alive, and the most of them at any moment."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def live_bytes() -> int:
    """Of all tensors that Python can reach, each storage counted once."""
    return sum(storage.nbytes() for storage in _live_storages().values())


class PeakBytes(TorchDispatchMode):
    """The most bytes alive at any moment of the block, tensors from before it included.

    Every storage that an operation returns is counted until it is freed; what lives only inside
    one operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[int] = set()
        self._now = 0
        for storage in _live_storages().values():
            self._count(storage)
        self.peak = self._now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self._now)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._now += storage.nbytes()
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, address: int, num_bytes: int) -> None:
        self._seen.discard(address)
        self._now -= num_bytes


def _live_storages() -> dict[int, torch.UntypedStorage]:
    for _ in range(3):  # a DeepSpeed engine is a knot of cycles, hooks and finalizers
        gc.collect()
    found = {}
    for tensor in _tensors():
        if tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            found[storage._cdata] = storage
    return found


def _tensors() -> Iterator[Tensor]:
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):  # isinstance would wake up lazy modules
            yield thing
            if thing.is_leaf and thing.grad is not None:
                yield thing.grad
