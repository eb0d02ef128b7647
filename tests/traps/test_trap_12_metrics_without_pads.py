"""Trap 12: metrics are averaged over pads as well, and move with the longest response of a batch.

When it bites: entropy, KL and loss rise and fall with the padding, and a run is stopped, or its β
turned, for what a batch happened to hold.

Seen to fail with each of these planted in the product:
- sums divided by responses, by all tokens with the prompts', or by the micro-batch's tokens;
- metrics of the last micro-batch alone, or of rank 0's share alone;
- gradient norms added up over ranks or micro-batches;
- the KL per token in place of per response;
- entropy over all rows of the batch, prompts included;
- the clip fraction of responses in place of tokens;
- explained variance the other way round, or about the values' variance;
- pretraining's loss divided by tokens that are not predicted, the first ones of documents;
- a reward model's accuracy over the pairs of a full micro-batch.
"""

import math

import numpy as np
import plain_llama
import pytest
import torch
from trap_models import BOS, causal_lm, reward_model
from trap_ppo import bench, engine, plain_entropy, split, work_dir
from trap_steps import STEPS, blocks, pairs, pretrain_config, sequences

from data_contracts.ratings import MARGINS
from kernels.ppo import explained_variance
from stages.pretrain import bits_per_byte

MICRO_BATCH_SIZES = [1, 2, 3, 5, 12]
CLOSE = 2e-5


@pytest.mark.parametrize("micro_batch_size", MICRO_BATCH_SIZES)
def test_metrics_of_the_update_are_means_over_response_tokens(
    tmp_path, tokenizer, micro_batch_size
):
    """Old log-probs and values are moved, as by an earlier step, so that the clips bite."""
    ready = bench(tmp_path, tokenizer, micro_batch_size=micro_batch_size)
    rollouts = ready.roll_out()
    steps = torch.linspace(-0.5, 0.5, len(rollouts.logprobs))
    values = rollouts.values.clone()
    rollouts.logprobs.add_(steps)
    rollouts.values.add_(steps.flip(0))
    entropy = plain_entropy(ready.models.policy.module, rollouts)
    policy, clipped, approx_kl = plain_policy_terms(-steps, rollouts.advantages)
    value, value_clipped = plain_value_terms(values, rollouts.values, rollouts.returns)
    errors = rollouts.returns - rollouts.values
    explained = 1 - errors.var(correction=0) / rollouts.returns.var(correction=0)
    found = ready.update(rollouts)
    assert found["ppo/policy_loss"] == pytest.approx(policy, abs=CLOSE)
    assert found["ppo/policy_clip_fraction"] == pytest.approx(clipped, abs=CLOSE)
    assert found["ppo/approx_kl"] == pytest.approx(approx_kl, abs=CLOSE)
    assert found["ppo/entropy"] == pytest.approx(entropy, abs=CLOSE)
    assert found["ppo/value_loss"] == pytest.approx(value, abs=CLOSE)
    assert found["ppo/value_clip_fraction"] == pytest.approx(value_clipped, abs=CLOSE)
    assert found["ppo/explained_variance"] == pytest.approx(explained.item(), abs=CLOSE)
    for name in ("policy", "value"):
        gradients = getattr(ready.models, name).gradients.values()
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        assert found[f"ppo/{name}_gradient_norm"] == pytest.approx(norm, rel=1e-4)


def plain_policy_terms(log_ratios, advantages):
    """Means over tokens of the clipped loss, of where the clip bites, and of k3."""
    losses, clipped, kl = [], [], []
    for log_ratio, advantage in zip(log_ratios.tolist(), advantages.tolist(), strict=True):
        ratio = math.exp(log_ratio)
        inside = min(max(ratio, 0.8), 1.2)
        losses.append(max(-advantage * ratio, -advantage * inside))
        clipped.append(-advantage * inside > -advantage * ratio)
        kl.append(ratio - 1 - log_ratio)
    return tuple(sum(x) / len(x) for x in (losses, clipped, kl))


def plain_value_terms(values, old_values, returns):
    """Means over tokens of the clipped error, and of where the clip bites."""
    losses, clipped = [], []
    for value, old, target in zip(
        *(x.tolist() for x in (values, old_values, returns)), strict=True
    ):
        inside = min(max(value, old - 0.2), old + 0.2)
        errors = (value - target) ** 2, (inside - target) ** 2
        losses.append(max(errors) / 2)
        clipped.append(errors[1] > errors[0])
    return sum(losses) / len(losses), sum(clipped) / len(clipped)


def test_metrics_of_the_rollout_are_means_over_responses(tmp_path, tokenizer):
    ready = bench(tmp_path, tokenizer, gate_threshold=0.4)
    rollouts, found = ready.roll_out_with_stats()
    trajectories, num = rollouts.trajectories, len(rollouts.trajectories)
    helpfulness, safety = (
        [plain_llama.scores(model.module, t.tokens)[-1].item() for t in trajectories]
        for model in (ready.models.rewards.helpfulness, ready.models.rewards.safety)
    )
    is_safety = [row["domain"] == "safety" for row in ready.prompts.rows]
    limit = math.log(0.4 / 0.6)
    is_gated = [s < limit and not own for s, own in zip(safety, is_safety, strict=True)]
    rewards = [
        s if own or gated else h
        for h, s, own, gated in zip(helpfulness, safety, is_safety, is_gated, strict=True)
    ]
    log_ratios = split(rollouts.logprobs - rollouts.ref_logprobs, rollouts)
    expected = {
        "ppo/reward": sum(rewards) / num,
        "ppo/helpfulness_score": sum(helpfulness) / num,
        "ppo/safety_score": sum(safety) / num,
        "ppo/gate_rate": sum(is_gated) / num,
        "ppo/kl": sum(x.sum().item() for x in log_ratios) / num,
        "ppo/beta": ready.config.kl_beta,
        "ppo/response_tokens": sum(len(t.response) for t in trajectories) / num,
        "ppo/unfinished_share": sum(not t.finished for t in trajectories) / num,
    }
    assert 0 < expected["ppo/gate_rate"] < 1
    assert 0 < expected["ppo/unfinished_share"] < 1
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["rollout metrics", "update metrics"])
def test_two_ranks_report_what_one_does(one_rank, two_ranks, kind):
    for rank in two_ranks:
        assert rank[kind] == pytest.approx(one_rank[kind], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("stage", STEPS)
def test_two_ranks_report_the_losses_of_one(one_rank, two_ranks, stage):
    for rank in two_ranks:
        expected = one_rank[f"{stage} metrics"]
        assert rank[f"{stage} metrics"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 7])
def test_sft_reports_nats_per_answer_token(tmp_path, micro_batch_size):
    model = causal_lm(6)
    logprobs = [
        plain_llama.logprobs(model, document.tokens[:start], document.tokens[start:]).detach()
        for sequence in sequences()
        for document in sequence
        for start in [document.loss_mask.index(True)]
    ]
    found = STEPS["sft"](engine(model), micro_batch_size, work_dir(tmp_path))
    assert found["train/loss"] == pytest.approx(-torch.cat(logprobs).mean().item(), abs=CLOSE)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 7])
def test_pretraining_reports_nats_per_predicted_token(tmp_path, micro_batch_size):
    model = causal_lm(6)
    logprobs = []
    for block in blocks():
        documents: list[list[int]] = [[]]
        for token in block.tolist():
            if token == 1 and documents[-1]:
                documents.append([])
            documents[-1].append(token)
        logprobs += [plain_llama.logprobs(model, d[:1], d[1:]).detach() for d in documents if d[1:]]
    found = STEPS["pretrain"](engine(model), micro_batch_size, work_dir(tmp_path))
    assert found["train/loss"] == pytest.approx(-torch.cat(logprobs).mean().item(), abs=CLOSE)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 7])
def test_pretraining_measures_bits_per_byte_of_held_out_text(tmp_path, micro_batch_size):
    """Blocks of unequal length; 2.5 bytes a token."""
    model = causal_lm(6)
    held_out = [block[: 4 + i] for i, block in enumerate(blocks())]
    documents = [block.tolist() for block in held_out]
    logprobs = torch.cat([plain_llama.logprobs(model, d[:1], d[1:]).detach() for d in documents])
    config = pretrain_config(micro_batch_size).model_copy(update={"mask_documents": False})
    found = bits_per_byte(engine(model), (held_out, 2.5), config, BOS, work_dir(tmp_path))
    assert found == pytest.approx(-logprobs.mean().item() / math.log(2) / 2.5, abs=CLOSE)


@pytest.mark.parametrize("micro_batch_size", [1, 7])
def test_held_out_text_is_cut_into_documents_as_training_text_is(tmp_path, micro_batch_size):
    """A BOS within a block is no target and no byte, but the first token after it is both."""
    model = causal_lm(6)
    block = np.array([BOS, 5, 6, BOS, 7, 8, 9, BOS])
    documents = [[BOS, 5, 6], [BOS, 7, 8, 9]]
    logprobs = torch.cat([plain_llama.logprobs(model, d[:1], d[1:]).detach() for d in documents])
    config = pretrain_config(micro_batch_size)
    assert config.mask_documents
    found = bits_per_byte(engine(model), ([block], 2.5), config, BOS, work_dir(tmp_path))
    num_bytes = 2.5 * 7  # of the stream that the block's seven targets are of
    assert found == pytest.approx(-logprobs.sum().item() / math.log(2) / num_bytes, abs=CLOSE)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 7])
def test_a_reward_model_reports_means_over_pairs(tmp_path, micro_batch_size):
    model = reward_model(6)
    ranking, auxiliary, correct = [], [], []
    for pair in pairs():
        chosen, rejected = (
            plain_llama.scores(model, side)[-1].item() for side in (pair.chosen, pair.rejected)
        )
        margin = MARGINS["small"][pair.rating] if pair.rating else 0.0
        ranking.append(softplus(-(chosen - rejected - margin)))
        correct.append(chosen > rejected)
        safe = {"both_safe": (1, 1), "both_unsafe": (0, 0), "chosen_safe_other_unsafe": (1, 0)}
        if pair.safety_label is not None:
            for score, is_safe in zip((chosen, rejected), safe[pair.safety_label], strict=True):
                auxiliary.append(softplus(-score if is_safe else score) / 2)
    found = STEPS["reward"](engine(model), micro_batch_size, work_dir(tmp_path))
    expected = {
        "train/ranking_loss": sum(ranking) / 7,
        "train/loss": (sum(ranking) + sum(auxiliary)) / 7,
        "train/accuracy": sum(correct) / 7,
    }
    assert found == pytest.approx(expected, abs=CLOSE)


def softplus(x):
    return math.log1p(math.exp(x))


def test_explained_variance_of_uneven_ranks_is_that_of_one(one_rank, two_ranks):
    assert one_rank["explained variance"].item() == pytest.approx(0.75)
    for rank in two_ranks:
        torch.testing.assert_close(rank["explained variance"], one_rank["explained variance"])


def test_explained_variance_by_hand():
    returns = torch.tensor([1.0, 3.0, 5.0])  # variance 8/3
    assert explained_variance(returns, returns).item() == 1
    assert explained_variance(torch.zeros(3), returns).item() == 0
    # the errors 0, 1, -1 have variance 2/3
    assert explained_variance(torch.tensor([1.0, 2.0, 6.0]), returns).item() == pytest.approx(0.75)
