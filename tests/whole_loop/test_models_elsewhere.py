"""Every model folder in other hands: transformers computes what we compute, from the same text."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification

from kernels.attention import Documents
from kernels.hf_layout import load_causal, load_reward
from stages.text.tokenizer import Tokenizer

TEXT = "hello! tell me how to make tea. thank you!"


def tokens_of(folder: Path) -> torch.Tensor:
    tokenizer = Tokenizer.load(folder)
    return torch.tensor([tokenizer.bos_id, *tokenizer.encode(TEXT), tokenizer.eos_id])


@pytest.mark.parametrize("name", ["base:0", "sft:0", "policy:1", "policy:2"])
def test_policies_give_the_same_logits(models: dict[str, Path], name: str):
    folder = models[name]
    tokens = tokens_of(folder)
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(tokens[None], use_cache=False).logits[0]
        found = load_causal(folder).logits(tokens, Documents.of([len(tokens)]))
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["helpfulness-rm", "safety-rm"])
@pytest.mark.parametrize("version", [1, 2])
def test_reward_models_give_the_same_reward(models: dict[str, Path], name: str, version: int):
    folder = models[f"{name}:{version}"]
    tokens = tokens_of(folder)
    theirs = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0, 0]
        found = load_reward(folder)(tokens, Documents.of([len(tokens)]))[0]
    assert (found - expected).abs() < 1e-4


def test_the_tokenizer_gives_the_same_ids(models: dict[str, Path]):
    folder = models["policy:2"]
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.encode(TEXT, add_special_tokens=False) == Tokenizer.load(folder).encode(TEXT)
