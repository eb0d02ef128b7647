"""Trap 11: KL and score are clipped together, so that a policy far from its reference pays no more
than one that is near.

Planted, and caught by the check below:
- the whole reward of every token clipped;
- the KL term clipped by itself, beside the score;
- the KL of the response subtracted from the score first, and the sum clipped.
"""

import pytest
import torch

from kernels.ppo import kl_shaped_rewards, sum_per_response

CLIP, BETA = 5.0, 0.5


def check(shaped_rewards):
    scores = torch.tensor([20.0, -20.0, 1.0])
    ref_logprobs = torch.full((4,), -30.0)
    logprobs = torch.tensor([-2.0, -30.0, -2.0, -30.0])  # log-ratios 28, 0 | 28 | 0
    rewards = shaped_rewards(scores, logprobs, ref_logprobs, [2, 1, 1])
    assert rewards.tolist() == pytest.approx([-14, 5, -14 - 5, 1])


def ours(scores, logprobs, ref_logprobs, lengths):
    return kl_shaped_rewards(scores, logprobs, ref_logprobs, lengths, BETA, score_clip=CLIP)


def test_a_large_kl_survives_the_score_clip():
    check(ours)


def everything_clipped(scores, logprobs, ref_logprobs, lengths):
    return kl_shaped_rewards(scores, logprobs, ref_logprobs, lengths, BETA).clamp(-CLIP, CLIP)


def kl_clipped_too(scores, logprobs, ref_logprobs, lengths):
    log_ratio = (logprobs - ref_logprobs).clamp(-CLIP, CLIP)
    return ours(scores, log_ratio, torch.zeros_like(log_ratio), lengths)


def clipped_after_the_sum(scores, logprobs, ref_logprobs, lengths):
    shaped = scores - BETA * sum_per_response(logprobs - ref_logprobs, lengths)
    return ours(shaped, ref_logprobs, ref_logprobs, lengths)


@pytest.mark.parametrize("bug", [everything_clipped, kl_clipped_too, clipped_after_the_sum])
def test_planted_bugs_are_caught(bug):
    with pytest.raises(AssertionError):
        check(bug)
