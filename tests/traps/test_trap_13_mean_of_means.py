"""Trap 13: a batch's loss is the mean of its micro-batches' means, so that a token weighs more the
shorter its micro-batch is.

Ten tokens of loss 1 and ninety of loss 2 average 1.9, and 1.5 by the mean of means. The checks
hold for the output layer's cross-entropy, the policy's, the value's and the ranking loss, for
every cut of the batch into micro-batches or ranks, an empty one included.

Planted, and caught by the check below:
- the mean of the micro-batches' means;
- sums divided by the tokens of an average micro-batch, not by those of the batch;
- the mean over the responses of their means.
"""

import itertools

import pytest
import torch

from kernels.cross_entropy import linear_cross_entropy_sum
from kernels.losses import ranking_loss
from kernels.ppo import policy_loss, value_loss

LENGTHS = [1, 9, 2, 4, 16]
NUM_TOKENS = sum(LENGTHS)
CUTS = [[5], [1, 4], [2, 3], [4, 1], [1, 1, 1, 1, 1], [2, 0, 3], [0, 5]]
"""Responses in each micro-batch."""

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(NUM_TOKENS, 6, dtype=torch.float64, generator=GENERATOR)
TARGETS = torch.randint(7, (NUM_TOKENS,), generator=GENERATOR)
OTHERS, MORE = torch.randn(2, NUM_TOKENS, dtype=torch.float64, generator=GENERATOR)
WEIGHT = torch.randn(7, 6, dtype=torch.float64, generator=GENERATOR)


def cross_entropy_sum(weight, tokens):
    return linear_cross_entropy_sum(FEATURES[tokens], weight, TARGETS[tokens])


def policy_sum(weight, tokens):
    return policy_loss(FEATURES[tokens] @ weight[0], OTHERS[tokens], MORE[tokens]).loss.sum()


def value_sum(weight, tokens):
    return value_loss(FEATURES[tokens] @ weight[0], OTHERS[tokens], MORE[tokens]).loss.sum()


def ranking_sum(weight, tokens):
    return ranking_loss(FEATURES[tokens] @ weight[0], OTHERS[tokens], MORE[tokens].abs()).sum()


LOSS_SUMS = [cross_entropy_sum, policy_sum, value_sum, ranking_sum]


def micro_batches(cut):
    """Lists of (first token, length), a list for each micro-batch."""
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).tolist()
    responses = list(zip(starts, LENGTHS, strict=False))
    bounds = torch.tensor([0, *cut]).cumsum(0).tolist()
    return [responses[a:b] for a, b in itertools.pairwise(bounds)]


def tokens_of(micro_batch):
    """Slice of the tokens of adjacent responses."""
    start = micro_batch[0][0] if micro_batch else 0
    return slice(start, start + sum(length for _, length in micro_batch))


def gradient(loss_sum, cut, loss_of):
    """Gradients of the micro-batches' losses, added up as over micro-batches and ranks."""
    weight = WEIGHT.clone().requires_grad_()
    for micro_batch in micro_batches(cut):
        loss_of(loss_sum, weight, micro_batch, len(cut)).backward()
    return weight.grad


def over_the_global_batch(loss_sum, weight, micro_batch, num_micro_batches):
    return loss_sum(weight, tokens_of(micro_batch)) / NUM_TOKENS


def check(loss_sum, loss_of):
    weight = WEIGHT.clone().requires_grad_()
    (loss_sum(weight, slice(0, NUM_TOKENS)) / NUM_TOKENS).backward()
    for cut in CUTS:
        torch.testing.assert_close(gradient(loss_sum, cut, loss_of), weight.grad)


@pytest.mark.parametrize("loss_sum", LOSS_SUMS)
def test_gradients_are_equal_for_every_cut(loss_sum):
    check(loss_sum, over_the_global_batch)


def mean_of_means(loss_sum, weight, micro_batch, num_micro_batches):
    num_tokens = sum(length for _, length in micro_batch)
    return loss_sum(weight, tokens_of(micro_batch)) / max(num_tokens, 1) / num_micro_batches


def average_number_of_tokens(loss_sum, weight, micro_batch, num_micro_batches):
    return loss_sum(weight, tokens_of(micro_batch)) / (NUM_TOKENS / num_micro_batches)


def mean_of_response_means(loss_sum, weight, micro_batch, num_micro_batches):
    total = weight.sum() * 0
    for start, length in micro_batch:
        total = total + loss_sum(weight, slice(start, start + length)) / length
    return total / len(LENGTHS)


@pytest.mark.parametrize("loss_sum", LOSS_SUMS)
@pytest.mark.parametrize("bug", [mean_of_means, average_number_of_tokens, mean_of_response_means])
def test_planted_bugs_are_caught(bug, loss_sum):
    with pytest.raises(AssertionError):
        check(loss_sum, bug)


def test_the_example_by_hand():
    losses = torch.tensor([1.0] * 10 + [2.0] * 90)
    assert (losses[:10].sum() / 100 + losses[10:].sum() / 100).item() == pytest.approx(1.9)
    assert (losses[:10].mean() / 2 + losses[10:].mean() / 2).item() == pytest.approx(1.5)
