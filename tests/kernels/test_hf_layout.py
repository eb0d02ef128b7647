import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from kernels.attention import Documents
from kernels.heads import RewardModel, ValueModel
from kernels.hf_layout import load_causal, load_config, load_reward, save_causal, save_reward
from kernels.model import CausalLM, ModelConfig

IDS = {"bos_id": 1, "eos_id": 2, "pad_id": 0}
LENGTHS = [7, 1, 20, 12]
TOKENS = torch.randint(3, 99, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
KINDS = [(4, False), (2, False), (1, True)]  # key-value heads, tied
BOTH_KINDS = pytest.mark.parametrize(("kv_heads", "tie"), KINDS)


def theirs(kv_heads=2, tie=False, model_type=LlamaForCausalLM, **changes):
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tie,
        rms_norm_eps=1e-5,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        num_labels=1,
        pad_token_id=0,
        **changes,
    )
    model = model_type(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            low, high = (0.5, 1.5) if weight.dim() == 1 else (-0.2, 0.2)
            weight.uniform_(low, high, generator=generator)
    return model


def ours(kv_heads=2, tie=False):
    config = ModelConfig(99, 64, 2, 4, kv_heads, 96, 256, 500.0, 1e-5, tie)
    model = CausalLM(config, torch.Generator().manual_seed(2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() > 1 else 1)  # logits of the size of a trained model's
    return model


def logits_of_theirs(model):
    """Their packed form is right only without the cache; with it documents see each other."""
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    with torch.no_grad():
        return model(TOKENS[None], position_ids=positions[None], use_cache=False).logits[0]


def logits_of_ours(model):
    with torch.no_grad():
        return model.logits(TOKENS, Documents.of(LENGTHS))


def scores_of_theirs(model):
    with torch.no_grad():
        return torch.cat([model(part[None]).logits[:, 0] for part in TOKENS.split(LENGTHS)])


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-5)


@BOTH_KINDS
def test_their_causal_model_gives_the_same_logits_here(tmp_path, kv_heads, tie):
    model = theirs(kv_heads, tie)
    model.save_pretrained(tmp_path)
    assert_close(logits_of_ours(load_causal(tmp_path)), logits_of_theirs(model))


@BOTH_KINDS
def test_our_causal_model_gives_the_same_logits_there(tmp_path, kv_heads, tie):
    model = ours(kv_heads, tie)
    save_causal(tmp_path, model.config, model.state_dict(), **IDS)
    loaded, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.dtype == torch.float32
    assert_close(logits_of_theirs(loaded.eval()), logits_of_ours(model))


def test_their_reward_model_gives_the_same_scores_here(tmp_path):
    model = theirs(model_type=LlamaForSequenceClassification)
    model.save_pretrained(tmp_path)
    scores = load_reward(tmp_path)(TOKENS, Documents.of(LENGTHS))
    assert_close(scores, scores_of_theirs(model))


@pytest.mark.parametrize("kind", [RewardModel, ValueModel])
def test_our_reward_model_gives_the_same_scores_there(tmp_path, kind):
    model = RewardModel.from_causal(ours(), torch.Generator().manual_seed(3))
    scores = model(TOKENS, Documents.of(LENGTHS)).detach()
    state = (model if kind is RewardModel else ValueModel.from_reward(model)).state_dict()
    save_reward(tmp_path, model.config, state, **IDS)
    loaded, info = LlamaForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.num_labels == 1
    assert loaded.config.problem_type == "regression"
    assert_close(scores_of_theirs(loaded.eval()), scores)


@BOTH_KINDS
@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000])
def test_there_and_back_is_exact(tmp_path, kv_heads, tie, max_shard_bytes):
    model = ours(kv_heads, tie)
    state = {name: p.detach() for name, p in model.named_parameters()}  # tied weights once
    save_causal(tmp_path, model.config, state, **IDS, max_shard_bytes=max_shard_bytes)
    num_files = len(list(tmp_path.glob("*.safetensors")))
    assert num_files == 1 if max_shard_bytes > 30_000 else num_files > 3
    loaded = load_causal(tmp_path)
    assert loaded.config == model.config
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    assert LlamaForCausalLM.from_pretrained(tmp_path).config.vocab_size == 99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_shards_are_read_into_fp32(tmp_path, dtype):
    theirs().to(dtype).save_pretrained(tmp_path, max_shard_size="30KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded = load_causal(tmp_path)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    expected = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_close(logits_of_ours(loaded), logits_of_theirs(expected))


def test_bf16_is_written_on_demand(tmp_path):
    model = ours()
    save_causal(tmp_path, model.config, model.state_dict(), **IDS, dtype="bfloat16")
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert LlamaForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    norms = [load_causal(tmp_path).backbone.norm.weight, model.backbone.norm.weight]
    assert torch.equal(norms[0], norms[1].bfloat16().float())


def test_config_json_names_what_other_programs_read(tmp_path):
    model = ours()
    save_causal(tmp_path, model.config, model.state_dict(), **IDS)
    written = json.loads((tmp_path / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float32",
        "torch_dtype": "float32",
        "rope_theta": 500.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "head_dim": 16,
    }
    assert expected.items() <= written.items()
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == 2
    assert loaded.config.rope_parameters["rope_theta"] == 500.0


def test_an_older_transformers_folder(tmp_path):
    theirs(4).save_pretrained(tmp_path)
    edit_config(
        tmp_path,
        remove=("rope_parameters", "dtype", "head_dim", "num_key_value_heads", "pad_token_id"),
        rope_theta=500.0,
        rope_scaling=None,
        torch_dtype="float16",
        pretraining_tp=1,
    )
    edit_weights(
        tmp_path,
        lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)},
    )
    assert_close(logits_of_ours(load_causal(tmp_path)), logits_of_theirs(theirs(4)))


# ---- refusals


def edit_config(folder, remove=(), **changes):
    path = folder / "config.json"
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k not in remove}
    path.write_text(json.dumps(kept | changes))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path)


@pytest.fixture
def folder(tmp_path):
    theirs().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mistral"}, "model_type 'mistral'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope type 'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope type 'linear'"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"head_dim": 32}, "head_dim 32"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_an_architecture_that_is_not_computed_is_refused(folder, changes, words):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=f"config.json asks for {re.escape(words)}"):
        load_config(folder)


def test_a_config_without_its_sizes_is_refused(folder):
    edit_config(folder, remove=("intermediate_size",))
    with pytest.raises(ValueError, match="lacks 'intermediate_size'"):
        load_config(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(folder, value):
    def spoil(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        return tensors

    edit_weights(folder, spoil)
    with pytest.raises(ValueError, match=r"model.safetensors: tensor model.layers.1.mlp.up_proj"):
        load_causal(folder)


def test_missing_and_unexpected_tensors_are_named(folder):
    edit_weights(folder, lambda t: {k: v for k, v in t.items() if "norm" not in k})
    with pytest.raises(ValueError, match=r"lacks tensors: model.layers.0.input_layernorm.weight"):
        load_causal(folder)


def test_a_causal_folder_is_no_reward_model(folder):
    with pytest.raises(ValueError, match=r"lacks tensors: score.weight.*reward model"):
        load_reward(folder)


def test_an_unexpected_tensor_is_named(folder):
    edit_weights(folder, lambda t: t | {"model.extra": torch.ones(2)})
    with pytest.raises(ValueError, match=r"has unexpected tensors: model\.extra\."):
        load_causal(folder)


def test_a_wrong_shape_is_refused(folder):
    edit_config(folder, vocab_size=100)
    with pytest.raises(ValueError, match=r"weight has shape \(99, 64\).*\(100, 64\)"):
        load_causal(folder)


def test_integer_weights_are_refused(folder):
    edit_weights(folder, lambda t: t | {"model.norm.weight": torch.ones(64, dtype=torch.int8)})
    with pytest.raises(ValueError, match=r"model.norm.weight is stored as torch.int8"):
        load_causal(folder)


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_causal(folder)


def test_a_missing_shard_is_refused(tmp_path):
    theirs().save_pretrained(tmp_path, max_shard_size="30KB")
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(ValueError, match=r"model-00002-.*safetensors is not a whole"):
        load_causal(tmp_path)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="Give a model saved with safetensors"):
        load_causal(folder)


def test_a_tied_model_with_another_output_layer_is_refused(tmp_path):
    theirs(tie=True).save_pretrained(tmp_path)
    head = load_causal(tmp_path).lm_head.weight.detach()
    edit_weights(tmp_path, lambda t: t | {"lm_head.weight": head})
    assert torch.equal(load_causal(tmp_path).lm_head.weight, head)
    edit_weights(tmp_path, lambda t: t | {"lm_head.weight": head + 1})
    with pytest.raises(ValueError, match="Set tie_word_embeddings to false"):
        load_causal(tmp_path)


def test_weights_that_are_not_whole_are_not_saved(tmp_path):
    model = ours()
    state = model.state_dict()
    norm = {"backbone.norm.weight": torch.full((64,), math.nan)}
    with pytest.raises(ValueError, match=r"backbone.norm.weight .* NaN"):
        save_causal(tmp_path, model.config, state | norm, **IDS)
    sharded = {"backbone.layers.0.attention.qkv.weight": torch.empty(0)}
    with pytest.raises(ValueError, match="Gather sharded weights first"):
        save_causal(tmp_path, model.config, state | sharded, **IDS)
    del state["lm_head.weight"]
    with pytest.raises(ValueError, match=r"lack lm_head.weight"):
        save_causal(tmp_path, model.config, state, **IDS)


def test_fp16_that_overflows_is_not_saved(tmp_path):
    model = ours()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"lm_head.weight .*float16"):
        save_causal(tmp_path, model.config, model.state_dict(), **IDS, dtype="float16")
