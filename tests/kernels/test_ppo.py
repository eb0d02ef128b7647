"""The maths of PPO: values by hand, a time-loop twin of GAE in float64, gradients."""

import math

import pytest
import torch

from kernels.masking import whiten
from kernels.ppo import (
    AdaptiveKL,
    explained_variance,
    gae,
    gated_reward,
    kl_shaped_rewards,
    logit,
    policy_loss,
    safety_gate,
    sum_per_response,
    value_loss,
)


def _logit(probability):
    return math.log(probability / (1 - probability))


# ---------------------------------------------------------------- the gated reward


def test_the_gate_by_hand():
    helpfulness = torch.tensor([1.0, 2.0, 3.0, 4.0])
    safety = torch.tensor([_logit(0.9), _logit(0.9), _logit(0.14), _logit(0.16)])
    is_safety_prompt = torch.tensor([False, True, False, False])
    gate = safety_gate(safety, is_safety_prompt)
    assert gate.tolist() == [False, True, True, False]
    reward = gated_reward(helpfulness, safety, is_safety_prompt)
    assert reward.tolist() == pytest.approx([1, _logit(0.9), _logit(0.14), 4])


def test_the_gate_compares_on_the_sigmoid_scale():
    safety = torch.linspace(-6, 6, 1001)
    untagged = torch.zeros(1001, dtype=torch.bool)
    for threshold in (0.05, 0.15, 0.8):
        gate = safety_gate(safety, untagged, threshold)
        assert torch.equal(gate, torch.sigmoid(safety) < threshold)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.7, 15.0])
def test_a_threshold_on_another_scale_is_refused(threshold):
    with pytest.raises(ValueError, match="give a number between 0 and 1"):
        safety_gate(torch.zeros(1), torch.tensor([False]), threshold)


def test_logit_by_hand_and_clamped():
    values = logit(torch.tensor([0.5, 0.75, 0.0, 1.0]))
    assert values.tolist() == pytest.approx([0, math.log(3), -13.8155, 13.8155], rel=1e-3)


def test_whitening_the_logit_of_a_sigmoid_is_whitening_the_score():
    scores = torch.tensor([-2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(whiten(logit(torch.sigmoid(scores))), whiten(scores))


# ---------------------------------------------------------------- the shaped reward


def test_shaped_rewards_by_hand():
    rewards = kl_shaped_rewards(
        score=torch.tensor([2.0, -1.0]),
        logprobs=torch.tensor([-1.0, -2.0, -3.0, -1.0]),
        ref_logprobs=torch.tensor([-1.5, -2.0, -1.0, -4.0]),
        lengths=[3, 1],
        beta=0.1,
    )
    # log-ratios 0.5, 0, -2 and 3: the KL term is signed
    assert rewards.tolist() == pytest.approx([-0.05, 0.0, 0.2 + 2, -0.3 - 1])


def test_the_score_clip_leaves_the_kl_alone():
    rewards = kl_shaped_rewards(
        torch.tensor([9.0, -9.0]),
        torch.full((2,), -1.0),
        torch.full((2,), -101.0),
        [1, 1],
        1.0,
        5.0,
    )
    assert rewards.tolist() == [-100 + 5, -100 - 5]


def test_shaped_rewards_carry_no_gradient():
    logprobs = torch.zeros(2, requires_grad=True)
    assert not kl_shaped_rewards(
        torch.ones(1), logprobs, torch.ones(2), [2], beta=0.1
    ).requires_grad


def test_the_score_is_not_changed_in_place():
    score, logprobs = torch.ones(1), torch.zeros(2)
    kl_shaped_rewards(score, logprobs, logprobs, [2], beta=0.0, score_clip=0.5)
    assert score.item() == 1
    assert logprobs.tolist() == [0, 0]


def test_sum_per_response_by_hand():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert sum_per_response(values, [1, 3]).tolist() == [1, 14]
    assert sum_per_response(values[:0], []).shape == (0,)


@pytest.mark.parametrize("lengths", [[2], [2, 2], [3, 0]])
def test_lengths_must_cover_the_tokens(lengths):
    with pytest.raises(AssertionError):
        sum_per_response(torch.zeros(3), lengths)


# ---------------------------------------------------------------- GAE


def _gae_over_time(rewards, values, lengths, gamma, lam):
    """The recursion as the paper writes it, one token after another."""
    advantages, start = [], 0
    for length in lengths:
        response, following, next_value = [], 0.0, 0.0
        for t in reversed(range(start, start + length)):
            delta = float(rewards[t]) + gamma * next_value - float(values[t])
            following = delta + gamma * lam * following
            next_value = float(values[t])
            response.insert(0, following)
        advantages += response
        start += length
    return torch.tensor(advantages, dtype=torch.float64)


def test_gae_by_hand():
    advantages, returns = gae(
        rewards=torch.tensor([0.0, 0.0, 1.0, 5.0]),
        values=torch.tensor([0.5, 0.25, 0.5, 2.0]),
        lengths=[3, 1],
        gamma=1.0,
        lam=0.5,
    )
    # deltas: 0.25 - 0.5, 0.5 - 0.25, 1 - 0.5; then 5 - 2
    assert advantages.tolist() == [-0.25 + 0.5 * 0.5, 0.25 + 0.5 * 0.5, 0.5, 3.0]
    assert returns.tolist() == [0.5, 0.75, 1.0, 5.0]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 0.9), (1.0, 1.0), (0.9, 0.0)])
@pytest.mark.parametrize(
    "lengths", [[1], [1, 1, 1], [5, 1, 9], [63, 64, 65], [129, 1, 128, 200], [700, 3]], ids=str
)
def test_gae_equals_the_time_loop(lengths, gamma, lam):
    generator = torch.Generator().manual_seed(sum(lengths))
    rewards, values = torch.randn(2, sum(lengths), generator=generator)
    exact = _gae_over_time(rewards, values, lengths, gamma, lam)
    advantages, returns = gae(rewards, values, lengths, gamma, lam)
    torch.testing.assert_close(advantages.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(returns.double(), exact + values, rtol=1e-5, atol=1e-5)
    advantages, _ = gae(rewards.double(), values.double(), lengths, gamma, lam)
    torch.testing.assert_close(advantages, exact, rtol=1e-12, atol=1e-12)


def test_gae_without_discount_is_the_reward_to_go_less_the_value():
    rewards, values = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    advantages, returns = gae(rewards, values, [4, 2], gamma=1.0, lam=1.0)
    to_go = torch.cat(
        [rewards[:4].flip(0).cumsum(0).flip(0), rewards[4:].flip(0).cumsum(0).flip(0)]
    )
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values)


def test_gae_of_no_responses():
    advantages, returns = gae(torch.zeros(0), torch.zeros(0), [])
    assert advantages.shape == returns.shape == (0,)


def test_gae_leaves_its_inputs_alone():
    rewards, values = torch.ones(3), torch.ones(3)
    gae(rewards, values, [2, 1])
    assert rewards.tolist() == values.tolist() == [1, 1, 1]


# ---------------------------------------------------------------- policy loss


def test_policy_loss_by_hand():
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5, 1.1])
    advantages = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    losses = policy_loss(ratios.log(), torch.zeros(6), advantages, clip=0.2)
    assert losses.loss.tolist() == pytest.approx([-2, -1.2, 1.5, -0.5, 0.8, -1.1])
    assert losses.is_clipped.tolist() == [False, True, False, False, True, False]
    assert losses.approx_kl.tolist() == pytest.approx(
        [0, *(r - 1 - math.log(r) for r in (1.5, 1.5, 0.5, 0.5, 1.1))], abs=1e-7
    )


def test_policy_gradient_by_hand():
    log_ratios = torch.tensor([0.0, math.log(1.5), math.log(1.5)], requires_grad=True)
    policy_loss(log_ratios, torch.zeros(3), torch.tensor([2.0, 1.0, -1.0])).loss.sum().backward()
    # -A ratio where it is not clipped, else nothing
    assert log_ratios.grad.tolist() == pytest.approx([-2, 0, 1.5])


def test_policy_loss_gradcheck():
    generator = torch.Generator().manual_seed(0)
    logprobs, old, advantages = torch.randn(3, 12, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(
        lambda new: policy_loss(new, old, advantages).loss, (logprobs.requires_grad_(),)
    )


def test_only_the_new_logprobs_get_a_gradient():
    new, old, advantages = (torch.ones(2, requires_grad=True) for _ in range(3))
    losses = policy_loss(new, old, advantages)
    losses.loss.sum().backward()
    assert new.grad is not None
    assert old.grad is None
    assert advantages.grad is None
    assert not losses.approx_kl.requires_grad


# ---------------------------------------------------------------- value loss


def test_value_loss_by_hand():
    losses = value_loss(
        values=torch.tensor([1.0, 1.0, 1.0]),
        old_values=torch.tensor([1.1, 0.0, 0.0]),
        returns=torch.tensor([3.0, 3.0, 0.5]),
        clip=0.2,
    )
    # near old: 1.0, 0.2, 0.2; of (4, 4), (4, 7.84) and (0.25, 0.09) the larger, halved
    assert losses.loss.tolist() == pytest.approx([2, 3.92, 0.125])
    assert losses.is_clipped.tolist() == [False, True, False]


def test_value_loss_gradcheck():
    generator = torch.Generator().manual_seed(1)
    values, old, returns = torch.randn(3, 12, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(
        lambda v: value_loss(v, old, returns).loss, (values.requires_grad_(),)
    )


def test_explained_variance_by_hand():
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns).item() == 1
    assert explained_variance(torch.full((3,), 9.0), returns).item() == 0
    assert explained_variance(-returns, returns).item() == pytest.approx(-3)
    assert explained_variance(returns, torch.ones(3)).item() == 0


# ---------------------------------------------------------------- β


def test_adaptive_kl_by_hand():
    controller = AdaptiveKL(beta=0.1, target=6.0, horizon=1000)
    controller.update(kl=6.6, num_responses=100)  # 10 % over
    assert controller.beta == pytest.approx(0.1 * 1.01)
    controller.update(kl=60.0, num_responses=100)  # bounded to 20 %
    assert controller.beta == pytest.approx(0.1 * 1.01 * 1.02)
    controller.update(kl=-1.0, num_responses=500)
    assert controller.beta == pytest.approx(0.1 * 1.01 * 1.02 * 0.9)


def test_adaptive_kl_goes_on_from_its_state():
    controller = AdaptiveKL(beta=0.1, target=6.0)
    controller.update(7.0, 512)
    resumed = AdaptiveKL(**controller.state_dict())
    for either in (controller, resumed):
        either.update(5.0, 512)
    assert resumed == controller
