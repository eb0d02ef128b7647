"""Trap 10: whitening counts pads, or is done by each rank for itself.

Planted, and caught by the checks below:
- mean and variance over every cell of the padded rectangle;
- the mean over what the mask keeps, the variance over every cell;
- each rank whitens its own share (in two real processes);
- ranks average their means and variances as if their shares were equal (in two real processes).
"""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kernels.masking import masked_mean, masked_whiten, whiten

# ---------------------------------------------------------------- pads


def check_pads(whitened):
    kept = torch.tensor([[1.0, 2.0, 6.0], [4.0, 0.0, 5.0]])
    expected = (kept - 3) / (14 / 3) ** 0.5  # mean 3, squares 4 + 1 + 9 + 1 + 9 + 4 over 6
    for num_pads in range(4):
        mask = torch.nn.functional.pad(torch.ones(2, 3, dtype=torch.bool), (0, num_pads))
        for fill in (0.0, 1.0, -1e4, float("nan")):
            padded = torch.nn.functional.pad(kept, (0, num_pads), value=fill)
            result = whitened(padded, mask)
            torch.testing.assert_close(result[mask].view(2, 3), expected)


def test_pads_change_nothing():
    check_pads(masked_whiten)


def over_every_cell(values, mask):
    return whiten(values.flatten()).view_as(values)


def variance_over_every_cell(values, mask):
    return (values - masked_mean(values, mask)) / values.std(correction=0)


@pytest.mark.parametrize("bug", [over_every_cell, variance_over_every_cell])
def test_planted_bugs_with_pads_are_caught(bug):
    with pytest.raises(AssertionError):
        check_pads(bug)


# ---------------------------------------------------------------- ranks

BATCH = torch.randn(12, generator=torch.Generator().manual_seed(0)) + torch.arange(12)
SHARES = (slice(0, 3), slice(3, 12))


def together(share):
    return whiten(share, group=dist.group.WORLD)


def each_for_itself(share):
    return whiten(share)


def averaged_moments(share):
    moments = torch.stack([share.mean(), share.var(correction=0)])
    dist.all_reduce(moments)
    mean, variance = moments / dist.get_world_size()
    return (share - mean) / variance.sqrt()


WAYS = (together, each_for_itself, averaged_moments)


def _one_of_two_ranks(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({way.__name__: way(BATCH[SHARES[rank]]) for way in WAYS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(_one_of_two_ranks, (folder,), 2, start_method="spawn")
    parts = [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
    return {way: torch.cat([part[way.__name__] for part in parts]) for way in WAYS}


def check_ranks(result):
    torch.testing.assert_close(result, whiten(BATCH))


def test_two_ranks_are_one(of_two_ranks):
    check_ranks(of_two_ranks[together])


@pytest.mark.parametrize("bug", [each_for_itself, averaged_moments])
def test_planted_bugs_with_ranks_are_caught(of_two_ranks, bug):
    with pytest.raises(AssertionError):
        check_ranks(of_two_ranks[bug])
