"""Trap 12: metrics are averaged over pads as well, and move with the longest response of a batch.

Planted, and caught by the check below:
- means over every cell of the padded rectangle;
- sums over every cell, divided by the number of tokens (a log-probability of 1.0 marks the pads);
- KL per response summed along the padded row;
- explained variance over every cell.
"""

import pytest
import torch
import torch.nn.functional as F

from kernels.masking import masked_mean
from kernels.ppo import explained_variance, policy_loss, sum_per_response

LENGTHS = [3, 1, 2]
MASK = torch.arange(3) < torch.tensor(LENGTHS)[:, None]


def batch(num_pads, fill):
    """New and old log-probabilities, advantages, values, returns (5 rectangles) and the mask."""
    rectangles = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(0))
    rectangles = torch.where(MASK, rectangles, fill)
    padded = F.pad(rectangles, (0, num_pads), value=fill)
    return (*padded, F.pad(MASK, (0, num_pads)))


def check(metrics_of):
    expected = ours(*batch(0, 0.0))
    for num_pads in range(3):
        for fill in (0.0, 1.0, -50.0):
            found = metrics_of(*batch(num_pads, fill))
            assert found == pytest.approx(expected), (num_pads, fill)


def ours(new, old, advantages, values, returns, mask):
    losses = policy_loss(new[mask], old[mask], advantages[mask])
    return {
        "approx kl": losses.approx_kl.mean().item(),
        "clip fraction": losses.is_clipped.float().mean().item(),
        "entropy": -masked_mean(new, mask).item(),
        "kl": sum_per_response((new - old)[mask], mask.sum(1).tolist()).mean().item(),
        "explained variance": explained_variance(values[mask], returns[mask]).item(),
    }


def test_padding_does_not_show_in_metrics():
    check(ours)


def test_metrics_by_hand():
    metrics = ours(*batch(0, 0.0))
    new, old, _, values, returns, _ = batch(0, 0.0)
    log_ratios = [(new - old)[i, t].item() for i in range(3) for t in range(LENGTHS[i])]
    assert metrics["kl"] == pytest.approx(sum(log_ratios) / 3)
    left = 1 - (returns - values)[MASK].var() / returns[MASK].var()
    assert metrics["explained variance"] == pytest.approx(left.item())


def means_over_every_cell(new, old, advantages, values, returns, mask):
    losses = policy_loss(new.flatten(), old.flatten(), advantages.flatten())
    return ours(new, old, advantages, values, returns, mask) | {
        "approx kl": losses.approx_kl.mean().item(),
        "clip fraction": losses.is_clipped.float().mean().item(),
    }


def sum_over_every_cell(new, old, advantages, values, returns, mask):
    metrics = ours(new, old, advantages, values, returns, mask)
    return metrics | {"entropy": (-new.sum() / mask.sum()).item()}


def kl_along_the_padded_row(new, old, advantages, values, returns, mask):
    metrics = ours(new, old, advantages, values, returns, mask)
    unmarked = torch.where(mask, old, 0)  # one side's pads are zeros, the other's are not
    return metrics | {"kl": (new - unmarked).sum(1).mean().item()}


def explained_over_every_cell(new, old, advantages, values, returns, mask):
    metrics = ours(new, old, advantages, values, returns, mask)
    over_all = explained_variance(values.flatten(), returns.flatten()).item()
    return metrics | {"explained variance": over_all}


@pytest.mark.parametrize(
    "bug",
    [
        means_over_every_cell,
        sum_over_every_cell,
        kl_along_the_padded_row,
        explained_over_every_cell,
    ],
)
def test_planted_bugs_are_caught(bug):
    with pytest.raises(AssertionError):
        check(bug)
