"""Reward-model losses: values by hand, a plain twin, gradients."""

import math

import pytest
import torch

from kernels.losses import ranking_loss, safety_auxiliary_loss


def _plain_ranking_loss(chosen, rejected, margin):
    return -torch.log(torch.sigmoid(chosen.double() - rejected.double() - margin.double()))


def test_ranking_loss_by_hand():
    losses = ranking_loss(
        torch.tensor([2.0, 1.0, 0.0]), torch.tensor([2.0, 0.0, 3.0]), torch.tensor([0.0, 1.0, 0.0])
    )
    # differences less margins: 0, 0 and -3
    expected = [math.log(2), math.log(2), math.log(1 + math.exp(3))]
    assert losses.tolist() == pytest.approx(expected)


def test_a_margin_asks_for_a_larger_difference():
    chosen, rejected = torch.tensor([1.0]), torch.tensor([0.0])
    small, large = (ranking_loss(chosen, rejected, torch.tensor([m])).item() for m in (1 / 3, 3.0))
    assert small == pytest.approx(math.log(1 + math.exp(-2 / 3)))
    assert large == pytest.approx(math.log(1 + math.exp(2)))


def test_ranking_loss_equals_the_formula():
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, margin = 3 * torch.randn(3, 50, generator=generator)
    exact = _plain_ranking_loss(chosen, rejected, margin)
    torch.testing.assert_close(ranking_loss(chosen, rejected, margin).double(), exact)


def test_ranking_loss_is_finite_where_the_formula_is_not():
    chosen = torch.tensor([-1e4, 1e4], requires_grad=True)
    losses = ranking_loss(chosen, -chosen.detach(), torch.zeros(2))
    assert losses.tolist() == [2e4, 0.0]
    losses.sum().backward()
    assert chosen.grad.tolist() == [-1.0, 0.0]


def test_ranking_loss_takes_the_difference_of_bf16_scores_in_fp32():
    chosen = torch.tensor([8.0625], dtype=torch.bfloat16)
    rejected = torch.tensor([8.0], dtype=torch.bfloat16)
    losses = ranking_loss(chosen, rejected, torch.tensor([1 / 3]))
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(math.log(1 + math.exp(1 / 3 - 0.0625)), rel=1e-6)


def test_ranking_loss_gradcheck():
    scores = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(ranking_loss, tuple(s.requires_grad_() for s in scores))


def test_safety_loss_by_hand():
    losses = safety_auxiliary_loss(
        torch.tensor([0.0, math.log(3), math.log(3)]), torch.tensor([True, True, False])
    )
    # σ: 1/2, 3/4, 3/4
    assert losses.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)])


def test_safety_loss_leaves_out_what_has_no_label():
    scores = torch.tensor([0.0, 5.0, -3.0], requires_grad=True)
    labelled = torch.tensor([True, False, False])
    for label in (True, False):
        losses = safety_auxiliary_loss(scores, torch.tensor([True, label, label]), labelled)
        assert losses.tolist() == pytest.approx([math.log(2), 0, 0])
    losses.sum().backward()
    assert scores.grad.tolist() == [-0.5, 0.0, 0.0]


def test_safety_loss_is_finite_for_any_score():
    scores = torch.tensor([-1e4, 1e4])
    losses = safety_auxiliary_loss(scores, torch.tensor([True, True]))
    assert losses.tolist() == [1e4, 0.0]


def test_safety_loss_is_fp32_for_bf16_scores():
    losses = safety_auxiliary_loss(torch.zeros(1, dtype=torch.bfloat16), torch.tensor([True]))
    assert losses.dtype == torch.float32


def test_safety_loss_gradcheck():
    scores = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    is_safe = torch.tensor([True, False, True, False, True, False])
    is_labelled = torch.tensor([True, True, True, True, False, False])
    assert torch.autograd.gradcheck(
        lambda s: safety_auxiliary_loss(s, is_safe, is_labelled), (scores.requires_grad_(),)
    )


def test_no_pairs_give_no_losses_and_zero_sum():
    empty = torch.zeros(0, requires_grad=True)
    ranking_loss(empty, empty, torch.zeros(0)).sum().backward()
    assert safety_auxiliary_loss(empty, torch.zeros(0, dtype=torch.bool)).sum().item() == 0
