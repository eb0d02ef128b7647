"""Trap 8: a KL estimator is differentiated as a loss, and its gradient is not that of the KL.

A tabular policy over all texts of two tokens; the expectation is taken over every text in place
of samples, so that the gradient is exact and no noise can hide a bug.

Planted, and caught by the check below:
- k1, the mean log-ratio, as a loss: its expected gradient is zero;
- k3, (1 / ratio - 1) + log ratio, as a loss: the gradient of another divergence, KL(ref ‖ policy);
- k1 in the reward but kept from being negative;
- k1 in the reward, each token credited with its own and not with what it leads to.
"""

import pytest
import torch

from kernels.ppo import gae, kl_shaped_rewards, policy_loss

V = 4
FIRST = torch.arange(V).repeat_interleave(V)
SECOND = torch.arange(V).repeat(V)
NUM_TEXTS = V * V


def tables(seed):
    """Logits of the first token (V,) and, for each first token, of the second (V, V)."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(V, dtype=torch.float64, generator=generator)
    second = torch.randn(V, V, dtype=torch.float64, generator=generator)
    return first.requires_grad_(), second.requires_grad_()


def logprobs_of_every_text(policy):
    """(texts · 2,) token log-probabilities, text after text."""
    first, second = policy
    by_first = torch.log_softmax(first, 0)[FIRST]
    by_second = torch.log_softmax(second, 1)[FIRST, SECOND]
    return torch.stack([by_first, by_second], dim=1).flatten()


def gradient(policy, per_token_loss):
    """Gradient of the loss's expectation over the policy's texts, the texts being constants."""
    logprobs = logprobs_of_every_text(policy)
    weights = logprobs.detach().view(NUM_TEXTS, 2).sum(1).exp()
    loss = (per_token_loss(logprobs).view(NUM_TEXTS, 2).sum(1) * weights).sum()
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, policy)])


def exact_gradient(policy, ref_logprobs):
    logprobs = logprobs_of_every_text(policy).view(NUM_TEXTS, 2).sum(1)
    kl = (logprobs.exp() * (logprobs - ref_logprobs.view(NUM_TEXTS, 2).sum(1))).sum()
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(kl, policy)])


def check(loss_against):
    for seed in range(3):
        policy = tables(seed)
        ref_logprobs = logprobs_of_every_text(tables(seed + 100)).detach()
        found = gradient(policy, loss_against(ref_logprobs))
        torch.testing.assert_close(found, exact_gradient(policy, ref_logprobs))


def ppo_on_rewards(rewards_of, lam=1.0):
    """PPO's first step on rewards that hold nothing but the KL term, at β = 1."""

    def loss_against(ref_logprobs):
        def per_token_loss(logprobs):
            rewards = rewards_of(logprobs.detach(), ref_logprobs)
            values = torch.zeros_like(rewards)
            advantages, _ = gae(rewards, values, [2] * NUM_TEXTS, gamma=1.0, lam=lam)
            return policy_loss(logprobs, logprobs.detach(), advantages).loss

        return per_token_loss

    return loss_against


def k1_in_the_reward(logprobs, ref_logprobs):
    no_score = torch.zeros(NUM_TEXTS, dtype=torch.float64)
    return kl_shaped_rewards(no_score, logprobs, ref_logprobs, [2] * NUM_TEXTS, beta=1.0)


def test_k1_in_the_reward_has_the_gradient_of_the_kl():
    check(ppo_on_rewards(k1_in_the_reward))


def test_no_gradient_flows_through_the_reward():
    logprobs = torch.zeros(2 * NUM_TEXTS, dtype=torch.float64, requires_grad=True)
    assert not k1_in_the_reward(logprobs, torch.zeros_like(logprobs)).requires_grad


def k1_as_a_loss(ref_logprobs):
    return lambda logprobs: logprobs - ref_logprobs


def k3_as_a_loss(ref_logprobs):
    return lambda logprobs: torch.expm1(ref_logprobs - logprobs) + logprobs - ref_logprobs


def never_negative(logprobs, ref_logprobs):
    return k1_in_the_reward(logprobs, ref_logprobs).clamp(max=0)


@pytest.mark.parametrize(
    "bug",
    [
        k1_as_a_loss,
        k3_as_a_loss,
        ppo_on_rewards(never_negative),
        ppo_on_rewards(k1_in_the_reward, lam=0.0),
    ],
    ids=["k1 as a loss", "k3 as a loss", "never negative", "own token only"],
)
def test_planted_bugs_are_caught(bug):
    with pytest.raises(AssertionError):
        check(bug)


def test_the_planted_k1_loss_pushes_nowhere():
    policy = tables(0)
    ref_logprobs = logprobs_of_every_text(tables(100)).detach()
    assert gradient(policy, k1_as_a_loss(ref_logprobs)).abs().max() < 1e-12
