"""Trap 19: the critic bootstraps past the EOS, so that the value of a text that is over counts.

Planted, and caught by the check below:
- the value of the next token in the batch, which is another response's;
- the last value used again in place of 0;
- the value that a padded row holds after its end;
- advantages carried over from the response that follows.
"""

import pytest
import torch

from kernels.ppo import gae

LENGTHS = [2, 3]
REWARDS = torch.tensor([0.0, 1.0, 0.0, 0.0, -1.0])
VALUES = torch.tensor([0.5, 0.25, 2.0, 3.0, 4.0])
PAD_VALUE = 7.0
EXPECTED = [(0.25 - 0.5) + 0.5 * 0.75, 0.75, 1 + 0.5 * (1 + 0.5 * -5), 1 + 0.5 * -5, -5]
"""At γ = 1 and λ = ½: deltas -0.25, 0.75 | 1, 1, -5; past either end value and advantage are 0."""


def check(advantages_of):
    assert advantages_of().tolist() == pytest.approx(EXPECTED)


def ours():
    return gae(REWARDS, VALUES, LENGTHS, gamma=1.0, lam=0.5).advantages


def test_values_after_the_end_are_zero():
    check(ours)


def over_time(value_after_the_end, carry):
    """A loop over the flat batch, with what it takes for the value past each response's end."""
    advantages = torch.zeros(5)
    following = 0.0
    ends = {1: 2, 4: 5}  # last token: the next one
    for t in reversed(range(5)):
        next_value = value_after_the_end(t) if t in ends else VALUES[t + 1]
        if t in ends and not carry:
            following = 0.0
        following = REWARDS[t] + next_value - VALUES[t] + 0.5 * following
        advantages[t] = following
    return advantages


def test_the_loop_without_a_bug_is_right():
    check(lambda: over_time(lambda t: 0.0, carry=False))


@pytest.mark.parametrize(
    "bug",
    [
        lambda: over_time(lambda t: VALUES[(t + 1) % 5], carry=False),
        lambda: over_time(lambda t: VALUES[t], carry=False),
        lambda: over_time(lambda t: PAD_VALUE, carry=False),
        lambda: over_time(lambda t: 0.0, carry=True),
    ],
    ids=["next token", "last value again", "pad's value", "carried over"],
)
def test_planted_bugs_are_caught(bug):
    with pytest.raises(AssertionError):
        check(bug)
