"""Copies of tensors in host memory, into the same memory every time."""

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopies:
    """Buffers for what a checkpoint holds; the copies live until the next call of `of`.

    Page-locked for a GPU, so that all copies run at the bus's full speed.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, dict[str, Tensor]] = {}

    def of(self, groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Copy named tensors, group by group."""
        copies = {
            group: {name: self._copy(group, name, tensor) for name, tensor in tensors.items()}
            for group, tensors in groups.items()
        }
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copies

    def _copy(self, group: str, name: str, tensor: Tensor) -> Tensor:
        buffers = self._buffers.setdefault(group, {})
        buffer = buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape:
            pinned = tensor.device.type == "cuda"
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            buffers[name] = buffer
        return buffer.copy_(tensor, non_blocking=True)
