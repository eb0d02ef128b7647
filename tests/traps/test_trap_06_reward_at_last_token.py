"""Trap 6: the score is added one token past the EOS (the first pad), or one short of it.

Planted, and caught by the check below:
- the score past the EOS, in a cell that GAE then cuts away: the EOS is credited with γλ of it;
- the score past the EOS in a flat batch: it lands on the next response's first token;
- the score on the token before the EOS.
"""

import pytest
import torch

from kernels.ppo import gae, kl_shaped_rewards

GAMMA, LAM, BETA = 0.9, 0.5, 0.1
LENGTHS = [3, 1, 2]
SCORES = torch.tensor([4.0, -2.0, 8.0])
LOGPROBS = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
REF_LOGPROBS = torch.tensor([-1.0, -2.0, -1.0, -1.0, -1.0, -2.0])
EXPECTED_REWARDS = [0, -0.1, 4, -2, 0, 7.9]
"""β times the log-ratios 0, 1, 0 | 0 | 0, 1, and each score on its response's last token."""
EXPECTED_ADVANTAGES = [0.45 * (-0.1 + 0.45 * 4), -0.1 + 0.45 * 4, 4, -2, 0.45 * 7.9, 7.9]
"""With all values 0: the rewards to go, discounted by γλ = 0.45."""


def check(advantages_of):
    rewards, advantages = advantages_of()
    assert rewards.tolist() == pytest.approx(EXPECTED_REWARDS)
    assert advantages.tolist() == pytest.approx(EXPECTED_ADVANTAGES)


def ours():
    rewards = kl_shaped_rewards(SCORES, LOGPROBS, REF_LOGPROBS, LENGTHS, BETA)
    return rewards, gae(rewards, torch.zeros(6), LENGTHS, GAMMA, LAM).advantages


def test_the_score_is_on_the_last_real_token():
    check(ours)


def past_the_eos_in_a_padded_row():
    rewards, advantages, start = [], [], 0
    for score, length in zip(SCORES, LENGTHS, strict=True):
        response = slice(start, start + length)
        penalty = -BETA * (LOGPROBS[response] - REF_LOGPROBS[response])
        with_pad = torch.cat([penalty, score[None]])
        estimate = gae(with_pad, torch.zeros(length + 1), [length + 1], GAMMA, LAM)
        rewards.append(with_pad[:-1])
        advantages.append(estimate.advantages[:-1])
        start += length
    return torch.cat(rewards), torch.cat(advantages)


def score_at(offset):
    rewards = -BETA * (LOGPROBS - REF_LOGPROBS)
    places = torch.tensor(LENGTHS).cumsum(0) - 1 + offset
    rewards[places.clamp(0, 5)] += SCORES
    return rewards, gae(rewards, torch.zeros(6), LENGTHS, GAMMA, LAM).advantages


@pytest.mark.parametrize(
    "bug", [past_the_eos_in_a_padded_row, lambda: score_at(1), lambda: score_at(-1)]
)
def test_planted_bugs_are_caught(bug):
    with pytest.raises(AssertionError):
        check(bug)


def test_the_planted_score_past_the_eos_is_discounted_once_more():
    _, advantages = past_the_eos_in_a_padded_row()
    assert advantages[2].item() == pytest.approx(GAMMA * LAM * 4)
