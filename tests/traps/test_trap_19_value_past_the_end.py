"""Trap 19: the critic bootstraps past the EOS, so that the value of a text that is over counts.

When it bites: the last tokens of a response are credited with what a pad or a neighbour is worth,
and the critic learns from its own invention.

Seen to fail with each of these planted in the product:
- the value of the next token in the batch, which is another response's;
- the last value used again in place of 0, for all responses or for those that were cut off;
- advantages carried over from the response that follows;
- a block's carry lost, or taken one token too late, in responses longer than a block;
- λ left out of the discount, or γ;
- the return without the value, or with the next token's;
- values clipped towards the return, or by a relative bound.
"""

import plain_ppo
import pytest
import torch
from trap_ppo import bench, split

from kernels.ppo import gae, value_loss


def test_values_after_the_end_are_zero():
    rewards = torch.tensor([0.0, 1.0, 0.0, 0.0, -1.0])
    values = torch.tensor([0.5, 0.25, 2.0, 3.0, 4.0])
    found = gae(rewards, values, [2, 3], gamma=1.0, lam=0.5)
    # deltas -0.25, 0.75 | 1, 1, -5; past either end value and advantage are 0
    expected = [-0.25 + 0.5 * 0.75, 0.75, 1 + 0.5 * (1 + 0.5 * -5), 1 + 0.5 * -5, -5]
    assert found.advantages.tolist() == pytest.approx(expected)
    returns = [a + v for a, v in zip(expected, values.tolist(), strict=True)]
    assert found.returns.tolist() == pytest.approx(returns)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 1.0), (0.8, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize(
    "lengths", [[1], [1, 1, 1], [3, 1, 5], [64, 63, 65], [200, 1, 129], [128, 128]]
)
def test_every_length_is_estimated_as_by_the_plain_loop(lengths, gamma, lam):
    """Around the 64 tokens of a block as well."""
    generator = torch.Generator().manual_seed(sum(lengths))
    rewards, values = torch.randn(2, sum(lengths), generator=generator, dtype=torch.float64)
    found = gae(rewards, values, lengths, gamma, lam)
    expected = []
    for own, estimates in zip(rewards.split(lengths), values.split(lengths), strict=True):
        expected += plain_ppo.advantages(own.tolist(), estimates.tolist(), gamma, lam)
    assert found.advantages.tolist() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(found.returns, found.advantages + values)


@pytest.mark.parametrize("neighbour", [-50.0, 50.0])
def test_a_neighbour_is_worth_nothing(neighbour):
    rewards, values = torch.zeros(9), torch.arange(9.0)
    alone = gae(rewards[3:6], values[3:6], [3]).advantages
    rewards[[0, 1, 2, 6, 7, 8]] = values[[0, 1, 2, 6, 7, 8]] = neighbour
    together = gae(rewards, values, [3, 3, 3]).advantages
    assert torch.equal(together[3:6], alone)


@pytest.mark.parametrize("is_cut", [False, True])
def test_the_last_token_of_a_rollout_earns_its_reward_alone(tmp_path, tokenizer, is_cut):
    """Finished or cut off, what follows is worth nothing to it."""
    ready = bench(tmp_path, tokenizer)
    rollouts = ready.roll_out()
    log_ratios = split(rollouts.logprobs - rollouts.ref_logprobs, rollouts)
    values, advantages = split(rollouts.values, rollouts), split(rollouts.advantages, rollouts)
    chosen = [i for i, t in enumerate(rollouts.trajectories) if t.finished != is_cut]
    assert chosen
    for i in chosen:
        reward = rollouts.scores[i] - 0.1 * log_ratios[i][-1]
        torch.testing.assert_close(advantages[i][-1], reward - values[i][-1], rtol=0, atol=1e-5)


def test_the_value_is_clipped_about_its_old_one():
    old = torch.zeros(4)
    values = torch.tensor([0.1, 0.5, 0.5, -0.5], requires_grad=True)
    returns = torch.tensor([1.0, 1.0, -1.0, -1.0])
    losses = value_loss(values, old, returns, clip=0.2)
    # ½ max((v - R)², (clamp(v, ±0.2) - R)²)
    assert losses.loss.tolist() == pytest.approx([0.405, 0.32, 1.125, 0.32])
    assert losses.is_clipped.tolist() == [False, True, False, True]
    losses.loss.sum().backward()
    assert values.grad.tolist() == pytest.approx([-0.9, 0, 1.5, 0])
