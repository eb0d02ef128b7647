"""Trap 11: KL and score are clipped together, so that a policy far from its reference pays no more
than one that is near.

When it bites: beyond the clip the KL costs nothing, and the policy runs away into whatever text
the reward model overrates.

Seen to fail with each of these planted in the product:
- the whole reward of every token clipped;
- the KL term clipped by itself, beside the score;
- the KL of the response subtracted from the score first, and the sum clipped;
- advantages, log-probs or returns clipped in the rollout;
- the response's KL clipped before it is reported;
- β made smaller as the KL grows.
"""

import plain_ppo
import pytest
import torch
from trap_ppo import bench, split

from kernels.ppo import kl_shaped_rewards

FAR = -30.0


def test_a_large_kl_survives_the_score_clip():
    scores = torch.tensor([20.0, -20.0, 1.0])
    ref_logprobs = torch.full((4,), FAR)
    logprobs = torch.tensor([-2.0, FAR, -2.0, FAR])  # log-ratios 28, 0 | 28 | 0
    rewards = kl_shaped_rewards(scores, logprobs, ref_logprobs, [2, 1, 1], beta=0.5, score_clip=5.0)
    assert rewards.tolist() == pytest.approx([-14, 5, -14 - 5, 1])
    unclipped = kl_shaped_rewards(scores, logprobs, ref_logprobs, [2, 1, 1], beta=0.5)
    assert unclipped.tolist() == pytest.approx([-14, 20, -14 - 20, 1])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("beta", [0.01, 0.5, 5.0])
def test_a_far_reference_is_paid_in_full(tmp_path, tokenizer, beta, sign):
    """Every token 28 nats from its reference, on either side, in the rollouts of PPO itself."""
    ready = bench(tmp_path, tokenizer, kl_beta=beta)
    near = ready.models.policy

    def far(*batch, **options):
        return near(*batch, **options) - 28 * sign

    ready.models.reference = far
    rollouts, stats = ready.roll_out_with_stats()
    kl = [28 * sign * length for length in rollouts.lengths]
    assert rollouts.kl.tolist() == pytest.approx(kl, rel=1e-5)
    assert stats["ppo/kl"] == pytest.approx(sum(kl) / 12, rel=1e-5)
    for score, values, found in zip(
        rollouts.scores.tolist(),
        split(rollouts.values, rollouts),
        split(rollouts.advantages, rollouts),
        strict=True,
    ):
        rewards = [-beta * 28 * sign] * len(values)
        rewards[-1] += score
        expected = plain_ppo.advantages(rewards, values.tolist(), 0.9, 0.95)
        assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
