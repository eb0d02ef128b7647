"""Trap 8: a KL estimator is differentiated as a loss, and its gradient is not that of the KL.

When it bites: as a loss, k1 pushes nowhere on average and k3 towards the wrong divergence; the
policy drifts while the KL that is printed looks held.

A tabular policy over all texts of two tokens shows it: the expectation is taken over every text
in place of samples, so that the gradient is exact and no noise can hide a bug.

Seen to fail with each of these planted in the product:
- k1 or k3 added to the policy's loss;
- k2, k3 or |k1| in the reward, or k1 kept from being negative;
- the KL of reference to policy, log-ratio turned round;
- the KL paid once, on the last token, or averaged over a response's tokens;
- each token credited with its own KL and not with what it leads to;
- a gradient that flows through the reward or through the old log-probs;
- the response's KL reported by another estimator than the one that is paid.
"""

import pytest
import torch
from trap_ppo import bench, plain_policy_gradients, split

from kernels.ppo import gae, kl_shaped_rewards, policy_loss

V = 4
FIRST = torch.arange(V).repeat_interleave(V)
SECOND = torch.arange(V).repeat(V)
NUM_TEXTS = V * V
LENGTHS = [2] * NUM_TEXTS


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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [1.0, 0.05])
def test_k1_in_the_reward_has_the_gradient_of_the_kl(seed, beta):
    """PPO's first step on rewards that hold nothing but the KL term."""
    policy = tables(seed)
    ref_logprobs = logprobs_of_every_text(tables(seed + 100)).detach()

    def per_token_loss(logprobs):
        rewards = kl_rewards(logprobs, ref_logprobs, beta)
        advantages, _ = gae(rewards, torch.zeros_like(rewards), LENGTHS, gamma=1.0, lam=1.0)
        return policy_loss(logprobs, logprobs, advantages).loss

    found = gradient(policy, per_token_loss)
    torch.testing.assert_close(found, beta * exact_gradient(policy, ref_logprobs))


def kl_rewards(logprobs, ref_logprobs, beta=1.0):
    no_score = torch.zeros(NUM_TEXTS, dtype=torch.float64)
    return kl_shaped_rewards(no_score, logprobs, ref_logprobs, LENGTHS, beta)


def test_the_kl_is_signed_at_every_token():
    logprobs, ref_logprobs = (logprobs_of_every_text(tables(seed)).detach() for seed in (0, 1))
    assert torch.equal(kl_rewards(logprobs, ref_logprobs), ref_logprobs - logprobs)


def test_no_gradient_flows_through_the_reward():
    logprobs = torch.zeros(2 * NUM_TEXTS, dtype=torch.float64, requires_grad=True)
    assert not kl_rewards(logprobs, torch.zeros_like(logprobs)).requires_grad


def test_the_update_differentiates_the_policy_term_alone(tmp_path, tokenizer):
    """With another policy as reference, so that a KL in the loss would have a gradient."""
    ready = bench(tmp_path, tokenizer, kl_beta=0.5)
    rollouts = ready.roll_out()
    assert rollouts.kl.abs().mean() > 1
    expected = plain_policy_gradients(ready.models.policy.module, rollouts)
    ready.update(rollouts)
    for name, found in ready.models.policy.gradients.items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)


def test_the_kl_reported_is_the_one_that_is_paid(tmp_path, tokenizer):
    rollouts, stats = bench(tmp_path, tokenizer).roll_out_with_stats()
    log_ratios = split(rollouts.logprobs - rollouts.ref_logprobs, rollouts)
    expected = [float(sum(ratios.tolist())) for ratios in log_ratios]
    assert rollouts.kl.tolist() == pytest.approx(expected, abs=1e-4)
    assert stats["ppo/kl"] == pytest.approx(sum(expected) / 12, abs=1e-4)
