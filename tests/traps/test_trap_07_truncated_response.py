"""Trap 7: a response cut off at the length limit is treated as finished, and its meaningless
score moves the advantage of every other response.

Planted, and caught by the check below:
- scores whitened over all responses, the cut one included;
- the same, with the cut one set to 0 only afterwards;
- GAE that reads on past a response's end: a cut one has no EOS to stop at, and what is read is
  the next response.
"""

import pytest
import torch

from kernels.masking import masked_whiten, whiten
from kernels.ppo import gae, kl_shaped_rewards

LENGTHS = [2, 4, 3, 2]
IS_FINISHED = torch.tensor([True, True, False, True])
IS_CUT_TOKEN = torch.tensor([False] * 6 + [True] * 3 + [False] * 2)


def advantages_with(whitened, estimate):
    """Advantages of the batch, by a way to whiten and a way to estimate, as a function of what
    the cut response scored, its log-probabilities and its values."""

    def advantages_of(cut_score, cut_logprob, cut_value):
        generator = torch.Generator().manual_seed(0)
        logprobs, ref_logprobs, values = torch.randn(3, 11, generator=generator)
        logprobs[IS_CUT_TOKEN], values[IS_CUT_TOKEN] = cut_logprob, cut_value
        scores = whitened(torch.tensor([1.0, -2.0, cut_score, 3.0]))
        rewards = kl_shaped_rewards(scores, logprobs, ref_logprobs, LENGTHS, beta=0.1)
        return estimate(rewards, values)

    return advantages_of


def check(advantages_of):
    one = advantages_of(cut_score=0.0, cut_logprob=-1.0, cut_value=0.0)
    for cut_score, cut_logprob, cut_value in [
        (50.0, -1.0, 0.0),
        (0.0, -9.0, 0.0),
        (0.0, -1.0, 7.0),
    ]:
        other = advantages_of(cut_score, cut_logprob, cut_value)
        torch.testing.assert_close(other[~IS_CUT_TOKEN], one[~IS_CUT_TOKEN])


def whitened_over_the_finished(scores):
    return masked_whiten(scores, IS_FINISHED)


def gae_per_response(rewards, values):
    return gae(rewards, values, LENGTHS).advantages


def test_a_truncated_response_changes_no_other():
    check(advantages_with(whitened_over_the_finished, gae_per_response))


def test_its_own_advantages_end_without_a_bootstrap():
    rewards, values = torch.zeros(3), torch.tensor([1.0, 2.0, 4.0])
    advantages = gae(rewards, values, [3], gamma=1.0, lam=1.0).advantages
    assert advantages.tolist() == [-1, -2, -4]


def whitened_then_zeroed(scores):
    return torch.where(IS_FINISHED, whiten(scores), 0)


def gae_past_the_end(rewards, values):
    return gae(rewards, values, [11]).advantages


@pytest.mark.parametrize(
    "bug",
    [
        advantages_with(whiten, gae_per_response),
        advantages_with(whitened_then_zeroed, gae_per_response),
        advantages_with(whitened_over_the_finished, gae_past_the_end),
    ],
    ids=["whitened over all", "zeroed afterwards", "past the end"],
)
def test_planted_bugs_are_caught(bug):
    with pytest.raises(AssertionError):
        check(bug)
