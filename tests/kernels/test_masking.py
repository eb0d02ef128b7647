"""Masked moments and whitening: values by hand, a plain twin, and two ranks against one."""

import statistics

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kernels.masking import masked_mean, masked_var, masked_whiten, whiten, whiten_by_group
from kernels.ppo import explained_variance

VALUES = torch.tensor([1.0, 2.0, 6.0, 100.0])
MASK = torch.tensor([True, True, True, False])
WHITE = [-2 / (14 / 3) ** 0.5, -1 / (14 / 3) ** 0.5, 3 / (14 / 3) ** 0.5]
"""1, 2 and 6 have mean 3 and population variance (4 + 1 + 9) / 3."""


def _plain_whiten(values):
    values = [float(value) for value in values]
    mean, deviation = statistics.fmean(values), statistics.pstdev(values)
    return [(value - mean) / deviation for value in values]


def test_mean_and_variance_by_hand():
    assert masked_mean(VALUES, MASK).item() == 3
    assert masked_var(VALUES, MASK).item() == pytest.approx(14 / 3)


def test_mean_and_variance_of_a_matrix():
    values = torch.tensor([[1.0, 9.0], [3.0, 9.0]])
    mask = torch.tensor([[True, False], [True, False]])
    assert masked_mean(values, mask).item() == 2
    assert masked_var(values, mask).item() == 1


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_what_the_mask_leaves_out_does_not_show(poison):
    values = torch.where(MASK, VALUES, poison).requires_grad_()
    mean = masked_mean(values, MASK)
    mean.backward()
    assert mean.item() == 3
    torch.testing.assert_close(values.grad, torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))
    assert masked_var(values, MASK).item() == pytest.approx(14 / 3)
    assert masked_whiten(values, MASK).tolist() == pytest.approx([*WHITE, 0])


def test_mean_gradcheck():
    values = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: masked_mean(v, MASK), (values,))


def test_nothing_kept_gives_zeros():
    nothing = torch.zeros(4, dtype=torch.bool)
    assert masked_mean(VALUES, nothing).item() == 0
    assert masked_var(VALUES, nothing).item() == 0
    assert masked_whiten(VALUES, nothing).tolist() == [0, 0, 0, 0]
    assert whiten(VALUES[:0]).shape == (0,)


def test_whiten_by_hand():
    assert whiten(VALUES[:3]).tolist() == pytest.approx(WHITE)
    kept_mean = whiten(VALUES[:3], shift_mean=False)
    assert kept_mean.tolist() == pytest.approx([3 + white for white in WHITE])


def test_whiten_equals_the_plain_one():
    values = 5 + 2 * torch.randn(101, generator=torch.Generator().manual_seed(0))
    assert whiten(values).tolist() == pytest.approx(_plain_whiten(values), rel=1e-5, abs=1e-6)


def test_whiten_keeps_small_differences_of_large_values():
    values = 1e4 + torch.tensor([0.0, 1.0, 5.0])
    assert whiten(values).tolist() == pytest.approx(WHITE, rel=1e-6)


@pytest.mark.parametrize("values", [[7.3], [0.1, 0.1, 0.1]])
def test_equal_values_whiten_to_zero(values):
    assert whiten(torch.tensor(values)).tolist() == pytest.approx([0] * len(values), abs=1e-6)


def test_groups_are_whitened_separately():
    values = torch.tensor([1.0, 50.0, 2.0, 70.0, 6.0])
    groups = torch.tensor([0, 1, 0, 1, 0])
    white = whiten_by_group(values, groups)
    assert white.tolist() == pytest.approx([WHITE[0], -1, WHITE[1], 1, WHITE[2]])
    elsewhere = torch.where(groups == 1, 1e3 * values, values)
    torch.testing.assert_close(whiten_by_group(elsewhere, groups), white)


def test_a_group_id_may_be_missing():
    assert whiten_by_group(VALUES[:3], torch.tensor([2, 2, 2])).tolist() == pytest.approx(WHITE)


def test_whitened_values_carry_no_gradient():
    assert not whiten(VALUES.clone().requires_grad_()).requires_grad
    assert not masked_whiten(VALUES.clone().requires_grad_(), MASK).requires_grad


# ---------------------------------------------------------------- two ranks


def _whole_batch():
    values = torch.randn(41, generator=torch.Generator().manual_seed(3)) * 3 + 10
    mask = torch.arange(41) % 5 != 0
    groups = (torch.arange(41) % 3 == 0).long()
    return values, mask, groups


CUTS = [7, 0, 41]
"""Values of the first rank: an uneven share, none, and all (which leaves none to the other)."""


def _whiten_on_one_of_two_ranks(rank, rendezvous, results):
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    group = dist.group.WORLD
    by_cut = []
    for cut in CUTS:
        mine = slice(0, cut) if rank == 0 else slice(cut, 41)
        values, mask, groups = (tensor[mine] for tensor in _whole_batch())
        by_cut.append(
            {
                "whiten": whiten(values, group=group),
                "masked": masked_whiten(values, mask, group=group),
                "kept mean": masked_whiten(values, mask, shift_mean=False, group=group),
                "by group": whiten_by_group(values, groups, group=group),
                "variance": masked_var(values, mask, group=group).reshape(1),
                "explained": explained_variance(values, 2 * values + 1, group=group).reshape(1),
            }
        )
    torch.save(by_cut, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(
        _whiten_on_one_of_two_ranks, (folder / "rendezvous", folder), 2, start_method="spawn"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("cut", range(len(CUTS)), ids=[f"{cut} of 41" for cut in CUTS])
def test_two_ranks_give_what_one_gives(two_ranks, cut):
    values, mask, groups = _whole_batch()
    first, second = (rank[cut] for rank in two_ranks)
    expected = {
        "whiten": whiten(values),
        "masked": masked_whiten(values, mask),
        "kept mean": masked_whiten(values, mask, shift_mean=False),
        "by group": whiten_by_group(values, groups),
    }
    for name, alone in expected.items():
        torch.testing.assert_close(torch.cat([first[name], second[name]]), alone)
    for rank in (first, second):
        assert rank["variance"].item() == pytest.approx(masked_var(values, mask).item())
        assert rank["explained"].item() == pytest.approx(0.75)  # returns 2v + 1: ¼ is left
