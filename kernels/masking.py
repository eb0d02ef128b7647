"""Means, variances and whitening over the values that a mask keeps, on one rank or over many.

Legend: B values (prompts or tokens). A mask is True where a value counts. `group` is a process
group: with one, every rank passes its own part and all get what one rank with every part would
get; every rank must call, an empty part included. Without one, nothing is communicated.

Whitened values and moments are constants of the optimisation: no gradient flows through them.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

_EPSILON = 1e-8
"""Added to a variance before its root: equal values whiten to 0, not to amplified rounding."""


def masked_mean(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of the values that the mask keeps; 0 where it keeps none. Differentiable."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


@torch.no_grad()
def masked_var(
    values: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Population variance (divided by the count) of the values that the mask keeps.

    0 where it keeps fewer than two.
    """
    kept = values[mask]
    moments = _moments(kept, torch.zeros_like(kept, dtype=torch.int64), group)
    return moments.variance.sum().to(values.dtype)  # the sum of one group, or of none


def whiten(
    values: Float[Tensor, " B"],
    shift_mean: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, " B"]:
    """Scale values to variance 1 and, with `shift_mean`, shift them to mean 0 (§3.2.3).

    Without `shift_mean` the mean stays where it was. A single value becomes 0 (or stays).
    """
    groups = torch.zeros_like(values, dtype=torch.int64)
    return whiten_by_group(values, groups, shift_mean, group)


def masked_whiten(
    values: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    shift_mean: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "*shape"]:
    """`whiten` over the values that the mask keeps; the others become 0 and change nothing.

    Use the mask to leave out responses whose score means nothing (cut off at the length limit):
    one such score otherwise moves the whitened value of every other response.
    """
    whitened = torch.zeros_like(values)
    whitened[mask] = whiten(values[mask], shift_mean, group)
    return whitened


@torch.no_grad()
def whiten_by_group(
    values: Float[Tensor, " B"],
    groups: Int[Tensor, " B"],
    shift_mean: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, " B"]:
    """Whiten the values of each group id (0, 1, …) by that group's own mean and variance.

    Scores of helpfulness and of safety prompts come from two models on two scales; whitened
    together, which prompts a batch happens to hold would decide who is above the mean. A group
    of one value becomes 0.
    """
    moments = _moments(values, groups, group)
    mean, variance = moments.mean[groups], moments.variance[groups]
    whitened = (values - mean) * torch.rsqrt(variance + _EPSILON)
    return (whitened if shift_mean else whitened + mean).to(values.dtype)


class _Moments(NamedTuple):
    """Mean and population variance by group id, in float64; 0 where a group has no values."""

    mean: Float[Tensor, " G"]
    variance: Float[Tensor, " G"]


def _moments(
    values: Float[Tensor, " B"], groups: Int[Tensor, " B"], group: dist.ProcessGroup | None
) -> _Moments:
    """Two passes in float64, so that how ranks share the values does not show in fp32."""
    num_groups = _max_over_ranks(groups.max() + 1 if len(groups) else groups.new_zeros(()), group)
    counts = _sum_by_group(torch.ones_like(values), groups, num_groups, group).clamp(min=1)
    mean = _sum_by_group(values, groups, num_groups, group) / counts
    squares = (values - mean[groups]).square()
    return _Moments(mean, _sum_by_group(squares, groups, num_groups, group) / counts)


def _sum_by_group(
    values: Tensor, groups: Tensor, num_groups: int, group: dist.ProcessGroup | None
) -> Tensor:
    """Sum over values and ranks for each group id, in float64."""
    sums = values.new_zeros(num_groups, dtype=torch.float64)
    sums.index_add_(0, groups, values.double())
    if group is not None:
        dist.all_reduce(sums, group=group)
    return sums


def _max_over_ranks(value: Tensor, group: dist.ProcessGroup | None) -> int:
    if group is not None:
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=group)
    return int(value)
