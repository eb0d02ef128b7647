"""Models as folders: a vocabulary that is padded beyond the tokenizer's pieces."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_store import VOCAB, small_tokenizer

from data_contracts.errors import UserError
from kernels.attention import Documents
from kernels.generation import Sampling, generate
from kernels.hf_layout import save_causal
from kernels.model import CausalLM, ModelConfig
from stages.models.folders import load_policy_folder, special_ids

CONFIG = ModelConfig(VOCAB, 32, 2, 4, 2, 48, max_seq_len=64)


def saved(folder: Path, config: ModelConfig) -> CausalLM:
    tokenizer = small_tokenizer()
    model = CausalLM(config, torch.Generator().manual_seed(0))
    save_causal(folder, config, model.state_dict(), **special_ids(tokenizer))
    tokenizer.copy_to(folder)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_beyond_the_pieces_are_never_drawn(tmp_path: Path, tied: bool):
    whole = saved(tmp_path, replace(CONFIG, vocab_size=VOCAB + 20, tie_embeddings=tied))
    model, tokenizer = load_policy_folder(tmp_path)
    assert model.config.vocab_size == model.backbone.config.vocab_size == tokenizer.vocab_size
    tokens = torch.arange(10)
    documents = Documents.of([10])
    expected = whole.logits(tokens, documents)[:, :VOCAB]
    torch.testing.assert_close(model.logits(tokens, documents), expected)
    assert (model.lm_head.weight is model.backbone.embedding.weight) == tied
    out = generate(model, [[1, 5]] * 64, Sampling(20), eos_id=tokenizer.eos_id, seed=0)
    assert all(tokenizer.decode(response) is not None for response in out.responses)


def test_a_tokenizer_with_more_pieces_than_the_model_is_refused(tmp_path: Path):
    saved(tmp_path, replace(CONFIG, vocab_size=VOCAB - 1))
    with pytest.raises(UserError, match="embeds only 299"):
        load_policy_folder(tmp_path)
