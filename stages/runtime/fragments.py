"""Where the fp32 master and the optimizer state of every trained parameter are, on this rank.

Without ZeRO a rank holds whole parameters; with it, flat partitions in which pieces of parameters
lie one behind the other, cut wherever the number of ranks and the stage have it. A fragment says
which elements of which parameter a piece is. Fragments are all that a checkpoint knows of ZeRO, so
any number of ranks at any stage reads what any other has written.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stages.runtime.distributed import Rank
from stages.runtime.zero import full_shape, masters

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of every element."""


class Fragment(NamedTuple):
    """Elements of one flattened parameter, and where this rank keeps them."""

    name: str
    """The parameter's name in the module."""
    start: int
    """First element of the parameter."""
    length: int
    owner: Tensor
    """The fp32 tensor that AdamW updates: a flat partition, or the parameter itself."""
    offset: int
    """First element in the flattened owner."""

    def of(self, whole: Tensor) -> Tensor:
        """This fragment's elements of the owner, or of a tensor laid out like it; a view."""
        return whole.detach().view(-1)[self.offset : self.offset + self.length]

    def share(self, rank: Rank) -> "Fragment":
        """The part of it that this rank writes when every rank holds the same."""
        first, last = (self.length * i // rank.world_size for i in (rank.index, rank.index + 1))
        return self._replace(
            start=self.start + first, length=last - first, offset=self.offset + first
        )


def fragments_of(module: nn.Module, optimizer: Any, stage: int, rank: Rank) -> list[Fragment]:
    """The fragments this rank updates, in the order of the module's parameters.

    `optimizer` is DeepSpeed's; without ZeRO (stage 0) every rank updates all.
    """
    trained = ((n, p) for n, p in module.named_parameters() if p.requires_grad)
    located = (_located(name, p, optimizer, stage, rank) for name, p in trained)
    return [fragment for fragment in located if fragment.length > 0]


def _located(name: str, parameter: Tensor, optimizer: Any, stage: int, rank: Rank) -> Fragment:
    if stage == 0:
        return Fragment(name, 0, parameter.numel(), parameter, 0)
    if stage == 3:
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = rank.index * size
        # Every rank's piece is as long; what is beyond the parameter's end is padding.
        length = min(size, full_shape(parameter).numel() - start)
        return Fragment(name, start, length, masters(optimizer)[group], offset)
    mapping: Any = getattr(parameter, "_hp_mapping")  # noqa: B009 - DeepSpeed's, not declared
    if mapping is None:  # it lies in other ranks' partitions
        return Fragment(name, 0, 0, parameter, 0)
    inside, here = mapping.lp_fragment_address, mapping.hp_fragment_address
    owner = masters(optimizer)[mapping.param_group_index]
    return Fragment(name, inside.start, inside.numel, owner, here.start)


def captured(
    fragments: list[Fragment], adamw: torch.optim.AdamW
) -> Iterator[tuple[str, Fragment, Tensor]]:
    """Kind, fragment and values (a view) of everything that must be kept to go on.

    Before the first update AdamW has no state, and there are masters alone.
    """
    for fragment in fragments:
        yield MASTER, fragment, fragment.of(fragment.owner)
        state = adamw.state.get(fragment.owner, {})
        for moment in MOMENTS:
            if moment in state:
                yield moment, fragment, fragment.of(state[moment])


def num_updates(adamw: torch.optim.AdamW) -> int:
    """Updates AdamW has made, on which its bias correction depends; skipped steps are none."""
    states = [state for state in adamw.state.values() if "step" in state]
    return int(states[0]["step"]) if states else 0


def prepared_state(owner: Tensor, updates: int, fused: bool) -> Mapping[str, Tensor]:
    """AdamW's state of an owner after so many updates, its moments still to be filled."""
    # The step counter stays on the CPU unless AdamW is fused.
    device = owner.device if fused else "cpu"
    step = torch.tensor(float(updates), dtype=torch.float32, device=device)
    return {"step": step, **{moment: torch.zeros_like(owner) for moment in MOMENTS}}
