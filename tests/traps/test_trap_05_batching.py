"""Trap 5: old and new log-probs of the same tokens differ because they were batched differently.

When it bites: with a learning rate of 0 the ratio is not 1, so the clip and the approximate KL
react to how a batch was cut and not to what was learned.

Seen to fail with each of these planted in the product:
- a mini-batch compared with the log-probs of the responses before it in the batch;
- old log-probs taken in the order of the micro-batch's lengths;
- attention that sees the other documents of a micro-batch;
- log-probs measured in bf16, or rounded on their way to the update;
- the last chunk of loss rows normalised with the chunk before it;
- a new learning rate for every mini-batch, in place of the schedule's.
"""

import pytest
import torch
from trap_models import ONE_RANK, causal_lm, value_model
from trap_ppo import bench, engine

from kernels import cross_entropy
from stages.models import rollouts as rollouts_module
from stages.models.rollouts import response_logprobs, response_values
from stages.runtime.distributed import process_group

SPLITS = [(12, 12), (12, 5), (12, 1), (5, 2), (5, 5), (1, 1)]
"""Responses of a mini-batch and of a micro-batch, out of 12."""


@pytest.fixture
def ready(tmp_path, tokenizer):
    ready = bench(tmp_path, tokenizer)
    ready.models.policy = engine(causal_lm(1, eos_logit=6), learning_rate=0.0)
    ready.models.value = engine(value_model(5), learning_rate=0.0)
    return ready


@pytest.mark.parametrize(("mini_batch_size", "micro_batch_size"), SPLITS)
@pytest.mark.parametrize("recompute", [False, True])
def test_without_learning_every_split_has_ratio_one(
    ready, mini_batch_size, micro_batch_size, recompute
):
    rollouts = ready.roll_out()
    ready.models.policy.module.backbone.activation_checkpointing = recompute
    sizes = {"mini_batch_size": mini_batch_size, "micro_batch_size": micro_batch_size}
    for order in (range(12), [7, 2, 11, 0, 5, 9, 1, 10, 3, 8, 6, 4]):
        stats = ready.update(rollouts, order, **sizes)
        assert stats["ppo/approx_kl"] == pytest.approx(0, abs=1e-11)
        assert stats["ppo/policy_clip_fraction"] == stats["ppo/value_clip_fraction"] == 0
        # at ratio 1 the loss is the mean advantage, at old values the error of the returns
        groups = [order[i : i + mini_batch_size] for i in range(0, 12, mini_batch_size)]
        advantages, errors = (
            [torch.cat([x[rollouts.slices([i])] for i in group]) for group in groups]
            for x in (rollouts.advantages, (rollouts.values - rollouts.returns).square() / 2)
        )
        mean_advantage = sum(x.mean().item() for x in advantages) / len(groups)
        mean_error = sum(x.mean().item() for x in errors) / len(groups)
        assert stats["ppo/policy_loss"] == pytest.approx(-mean_advantage, abs=1e-5)
        assert stats["ppo/value_loss"] == pytest.approx(mean_error, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_tokens", [1, 20, 45, 10_000])
def test_forward_passes_of_any_size_measure_the_same(ready, monkeypatch, dtype, num_tokens):
    trajectories = ready.roll_out().trajectories
    model, value = causal_lm(1, dtype=dtype), ready.models.value
    alone = torch.cat([response_logprobs(model, [t], 0.7, ONE_RANK) for t in trajectories])
    values = torch.cat([response_values(value, [t], ONE_RANK) for t in trajectories])
    monkeypatch.setattr(rollouts_module, "MEASURING_TOKENS", num_tokens)
    close = {"rtol": 0, "atol": 1e-5}
    together = response_logprobs(model, trajectories, 0.7, ONE_RANK)
    torch.testing.assert_close(together, alone, **close)
    torch.testing.assert_close(response_values(value, trajectories, ONE_RANK), values, **close)


@pytest.mark.parametrize("num_rows", [1, 3, 7])
def test_chunks_of_loss_rows_do_not_show(ready, monkeypatch, num_rows):
    rollouts = ready.roll_out()
    whole = ready.update(rollouts)
    gradients = ready.models.policy.gradients
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS_CPU", 1)
    monkeypatch.setattr(cross_entropy, "_CHUNK_ROWS_CPU", num_rows)
    assert ready.update(rollouts) == pytest.approx(whole, abs=1e-9)
    for name, found in ready.models.policy.gradients.items():
        torch.testing.assert_close(found, gradients[name], rtol=0, atol=1e-9)
    torch.testing.assert_close(ready.roll_out().logprobs, rollouts.logprobs)


@pytest.mark.gpu
def test_bf16_on_a_gpu_measures_the_same_within_a_hundredth(tmp_path, tokenizer):
    trajectories = bench(tmp_path, tokenizer).roll_out().trajectories
    rank = process_group()
    model = causal_lm(1, dtype=torch.bfloat16).to(rank.device)
    alone = torch.cat([response_logprobs(model, [t], 1.0, rank) for t in trajectories])
    together = response_logprobs(model, trajectories, 1.0, rank)
    assert (together - alone).abs().mean() < 0.01
