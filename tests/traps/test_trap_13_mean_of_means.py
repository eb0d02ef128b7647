"""Trap 13: a batch's loss is the mean of its micro-batches' means, so that a token weighs more the
shorter its micro-batch is.

When it bites: ten tokens of loss 1 and ninety of loss 2 average 1.5 and not 1.9; gradients change
with the number of GPUs, and long answers are under-trained.

The gradients of every training stage are compared with those of the whole batch at once, for many
cuts into micro-batches, an order that mixes lengths, and two real ranks with unequal shares.

Seen to fail with each of these planted in the product:
- a micro-batch's mean, divided by the number of micro-batches;
- the sum divided by the tokens of an average micro-batch, or of this rank's share;
- the mean over responses of their means, or the sum over tokens divided by responses;
- DeepSpeed's own division by the accumulation steps, or by the ranks;
- the tokens of the whole rollout in place of the mini-batch's, or of a full mini-batch;
- the batch's tokens counted with the prompts', or with the padding's sequence length;
- the last, smaller micro-batch left out, or counted as a full one;
- gradients of a rank's first micro-batch forgotten, or exchanged at every micro-batch;
- advantages of other tokens than the log-probs', where the order is not the batch's.
"""

import plain_llama
import pytest
import torch
from trap_models import causal_lm, reward_model, value_model
from trap_ppo import bench, engine, plain_policy_gradients, split, work_dir
from trap_steps import STEPS, sequences

SIZES = [1, 2, 3, 5, 6]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def model_of(stage):
    return reward_model(6) if stage == "reward" else causal_lm(6)


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **(tolerance or CLOSE))


@pytest.mark.parametrize("stage", STEPS)
@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_every_cut_are_those_of_the_whole(tmp_path, stage, size):
    whole, cut = engine(model_of(stage)), engine(model_of(stage))
    expected = STEPS[stage](whole, 7, work_dir(tmp_path))
    assert STEPS[stage](cut, size, work_dir(tmp_path)) == pytest.approx(expected, rel=1e-6)
    assert_same(cut.gradients, whole.gradients)


def test_the_gradient_of_sft_is_that_of_the_mean_over_answer_tokens(tmp_path):
    twin = causal_lm(6)
    documents = [document for sequence in sequences() for document in sequence]
    starts = [document.loss_mask.index(True) for document in documents]
    logprobs = [
        plain_llama.logprobs(twin, document.tokens[:start], document.tokens[start:])
        for document, start in zip(documents, starts, strict=True)
    ]
    (-torch.cat(logprobs).mean()).backward()
    trained = engine(causal_lm(6))
    STEPS["sft"](trained, 3, work_dir(tmp_path))
    assert_same(trained.gradients, {n: p.grad for n, p in twin.named_parameters()})


@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("order", [range(12), [7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 6, 4]])
def test_the_gradients_of_ppo_are_means_over_response_tokens(tmp_path, tokenizer, size, order):
    ready = bench(tmp_path, tokenizer, micro_batch_size=size)
    rollouts = ready.roll_out()
    policy = plain_policy_gradients(ready.models.policy.module, rollouts)
    value = plain_value_gradients(ready.models.value.module, rollouts)
    ready.update(rollouts, order)
    assert_same(ready.models.policy.gradients, policy, rtol=1e-4, atol=1e-5)
    assert_same(ready.models.value.gradients, value, rtol=1e-4, atol=1e-5)


def plain_value_gradients(model, rollouts, indices=range(12)):
    """Of the mean over the response tokens of half the squared error."""
    returns, errors = split(rollouts.returns, rollouts), []
    for i in indices:
        trajectory = rollouts.trajectories[i]
        values = plain_llama.scores(model, trajectory.tokens)[len(trajectory.prompt) - 1 : -1]
        errors.append(values - returns[i])
    loss = torch.cat(errors).square().mean() / 2
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("mini_batch_size", [5, 7])
def test_every_mini_batch_has_a_mean_of_its_own(tmp_path, tokenizer, mini_batch_size):
    """The last, smaller one too: its gradient is that of its own responses' tokens."""
    ready = bench(tmp_path, tokenizer, mini_batch_size=mini_batch_size, micro_batch_size=2)
    ready.models.policy = engine(causal_lm(1, eos_logit=6), learning_rate=0.0)
    ready.models.value = engine(value_model(5), learning_rate=0.0)
    rollouts = ready.roll_out()
    last = list(range(12))[12 - 12 % mini_batch_size :]
    ready.update(rollouts)
    policy = plain_policy_gradients(ready.models.policy.module, rollouts, indices=last)
    value = plain_value_gradients(ready.models.value.module, rollouts, last)
    assert_same(ready.models.policy.gradients, policy, rtol=1e-4, atol=1e-5)
    assert_same(ready.models.value.gradients, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*STEPS, "policy", "value"])
def test_gradients_of_two_ranks_are_those_of_one(one_rank, two_ranks, name):
    """Micro-batches of two: four and three documents, so that the ranks' shares are unequal."""
    for rank in two_ranks:
        assert_same(rank[name], one_rank[name], rtol=1e-3, atol=1e-5)
