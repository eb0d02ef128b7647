"""The processes that run one stage together, and what they tell each other.

A stage's body is the same for one process and for many. Under a launcher (torchrun, deepspeed) its
ranks join over the launcher's address; without one, `process_group` forms a group of one in this
process, so that DeepSpeed finds what it needs and nothing listens on a port.
"""

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, overload

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

T = TypeVar("T")

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE_VARIABLE = "RLHF_PATIENCE_MINUTES"
PATIENCE_MINUTES = 120.0
"""How long ranks wait for each other. Rank 0 hashes and publishes while the others wait, and a dead
rank of the same machine is noticed by the launcher, not by this clock. A machine that is cut off is
noticed by nothing else, so a launch on several takes less (`launch.patience_minutes`)."""


@dataclass(frozen=True)
class Rank:
    """This process among those that run the stage. All ranks call the same methods in one order."""

    index: int
    world_size: int
    local_index: int
    """Position among the ranks of the same machine."""
    device: torch.device
    group: dist.ProcessGroup | None = None
    """The channel they talk over; None is torch's default."""

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to the store."""
        return self.index == 0

    @overload
    def sum(self, value: torch.Tensor) -> torch.Tensor: ...
    @overload
    def sum(self, value: float) -> float: ...
    def sum(self, value: torch.Tensor | float) -> torch.Tensor | float:
        """Sum over all ranks; the argument is left as it is. Floats are added in float64."""
        if isinstance(value, torch.Tensor):
            return self._reduced(value, dist.ReduceOp.SUM)
        if self.world_size == 1:  # nor a way to the GPU and back, for which it would wait
            return float(value)
        return self._reduced(self._scalar(value), dist.ReduceOp.SUM).item()

    def max(self, value: float) -> float:
        """Largest over all ranks."""
        if self.world_size == 1:
            return float(value)
        return self._reduced(self._scalar(value), dist.ReduceOp.MAX).item()

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=self.group, device=self.device)
        return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier(group=self.group)

    def beside(self) -> "Rank":
        """The same ranks over a channel of their own, for one thread beside the training."""
        if self.world_size == 1:
            return self
        group = dist.new_group(backend="gloo", timeout=patience())
        return replace(self, device=torch.device("cpu"), group=group)

    def _scalar(self, value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)

    def _reduced(self, value: torch.Tensor, operation: Any) -> torch.Tensor:
        reduced = value.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(reduced, op=operation, group=self.group)
        return reduced


def patience() -> timedelta:
    """How long to wait for other ranks."""
    return timedelta(minutes=float(os.environ.get(PATIENCE_VARIABLE, PATIENCE_MINUTES)))


def share_patience() -> None:
    """Let the groups that DeepSpeed has made wait as long as ours.

    Torch's default is 30 minutes with gloo, and 10 with NCCL, too short for a rank 0 that hashes a
    large model.
    """
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(patience(), group)


def under_launcher() -> bool:
    """Whether a launcher started this process as one of several ranks (or as the only one)."""
    return all(name in os.environ for name in LAUNCHER_VARIABLES)


def process_group() -> Rank:
    """Join the launcher's group, or form a group of one. Calling it again gives the same group."""
    local_index = int(os.environ.get("LOCAL_RANK", "0"))
    device = _device(local_index)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if under_launcher():
            dist.init_process_group(backend, timeout=patience())
        else:
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=patience())
    return Rank(dist.get_rank(), dist.get_world_size(), local_index, device)


def leave_process_group() -> None:
    """Close the group at the end of a launched process; NCCL complains about one left open."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(local_index: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_index)
    return torch.device("cuda", local_index)
