"""Trap 4: dropout is on while old or reference log-probs are taken.

When it bites: the ratio and the KL are noise before the first update; the policy is paid for
texts that the dice of one forward pass happened to dislike.

This model has no dropout, and a checkpoint that asks for it trains without. Put into training
mode, policy, value, reference and reward models must still say the same thing twice.

Seen to fail with each of these planted in the product:
- dropout after the feed-forward, after the attention, or on the embedding, in training mode;
- attention weights dropped whatever the mode is;
- dropout of the generator's decoding alone;
- noise in the score head;
- a checkpoint's attention_dropout taken over.
"""

import json

import pytest
import torch
from trap_models import EOS, HEADS, causal_lm, flat, random_ids, reward_model, value_model
from trap_ppo import bench, prompts

from kernels.attention import Documents
from kernels.generation import Sampling, generate
from kernels.hf_layout import load_causal, save_causal
from stages.runtime.engine import EngineSettings, frozen

DOCUMENTS = [random_ids(n, n) for n in (7, 3, 12)]
TOKENS, LAYOUT = flat(DOCUMENTS), Documents.of([7, 3, 12])


@pytest.fixture(params=HEADS.values(), ids=HEADS.keys())
def num_kv_heads(request):
    return request.param


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_mode_changes_no_logit(num_kv_heads, checkpointing):
    model = causal_lm(0, num_kv_heads)
    expected = model.eval().logits(TOKENS, LAYOUT)
    model.backbone.activation_checkpointing = checkpointing
    for seed in range(3):
        torch.manual_seed(seed)
        assert torch.equal(model.train().logits(TOKENS, LAYOUT), expected)


@pytest.mark.parametrize("build", [reward_model, value_model])
def test_training_mode_changes_no_score(build, num_kv_heads):
    model = build(0, num_kv_heads)
    expected = model.eval()(TOKENS, LAYOUT)
    for seed in range(3):
        torch.manual_seed(seed)
        assert torch.equal(model.train()(TOKENS, LAYOUT), expected)


def test_training_mode_changes_no_sample(num_kv_heads):
    model = causal_lm(0, num_kv_heads, eos_logit=6)
    questions, sampling = prompts(6).tokens, Sampling(8)
    expected = generate(model.eval(), questions, sampling, eos_id=EOS, seed=0)
    assert generate(model.train(), questions, sampling, eos_id=EOS, seed=0) == expected


def test_kl_is_zero_and_the_ratio_one_at_step_zero(tmp_path, tokenizer):
    ready = bench(tmp_path, tokenizer)
    ready.models.reference = frozen(causal_lm(1, eos_logit=6), EngineSettings(), ready.work.rank)
    for model in (ready.models.policy, ready.models.value, ready.models.reference):
        model.module.train()
    rollouts = ready.roll_out()
    assert torch.equal(rollouts.logprobs, rollouts.ref_logprobs)
    assert not rollouts.kl.any()
    stats = ready.update(rollouts, micro_batch_size=12)
    assert stats["ppo/approx_kl"] == pytest.approx(0, abs=1e-12)
    assert stats["ppo/policy_clip_fraction"] == 0
    assert stats["ppo/value_clip_fraction"] == 0


def test_a_checkpoint_that_asks_for_dropout_runs_without(tmp_path):
    model = causal_lm(0, dtype=torch.float32)
    save_causal(tmp_path, model.config, model.state_dict(), bos_id=1, eos_id=2, pad_id=3)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_dropout": 0.5}))
    loaded = load_causal(tmp_path).train()
    assert torch.equal(loaded.logits(TOKENS, LAYOUT), model.logits(TOKENS, LAYOUT))
