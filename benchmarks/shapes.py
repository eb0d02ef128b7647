"""The model that both sides run, and what its arithmetic costs at least."""

from dataclasses import dataclass
from typing import Literal

import torch

from kernels.heads import RewardModel
from kernels.model import CausalLM, ModelConfig

Precision = Literal["fp32", "bf16"]

BOS_ID, EOS_ID, PAD_ID = 1, 2, 0
NUM_SPECIAL = 3
"""Ids below this are special; random text has none of them."""

SMALL = ModelConfig(
    vocab_size=4096, dim=256, n_layers=4, n_heads=4, n_kv_heads=4, ffn_hidden=688, max_seq_len=512
)
"""Four layers of width 256: small enough for two cores, and every part has its real share."""

MEDIUM = ModelConfig(
    vocab_size=32_000, dim=1024, n_layers=16, n_heads=16, n_kv_heads=16, ffn_hidden=2816
)
"""270 million parameters and Llama 2's vocabulary, for a GPU."""


@dataclass(frozen=True)
class Floor:
    """Work that no implementation avoids, for each token of the benchmark's count."""

    flops: float
    note: str


def policy(config: ModelConfig) -> CausalLM:
    """The same random weights on every side."""
    return CausalLM(config, torch.Generator().manual_seed(0))


def reward_model(config: ModelConfig) -> RewardModel:
    """The same random weights on every side."""
    return RewardModel.from_causal(policy(config), torch.Generator().manual_seed(1))


def backbone_flops(config: ModelConfig, mean_context: float, row_share: float = 1.0) -> float:
    """Forward pass of one token without the output layer; a multiply-add counts as two.

    mean_context: tokens that a token attends to, on average; half a document, since half of the
    square is masked. row_share: of the tokens, those whose last hidden state anybody reads; the
    others need nothing beyond the last layer's attention.
    """
    vocab_matrices = 2 - config.tie_embeddings
    matrices = config.num_parameters() - vocab_matrices * config.vocab_size * config.dim
    after_attention = config.dim**2 + 3 * config.dim * config.ffn_hidden
    used = matrices - (1 - row_share) * after_attention
    return 2.0 * used + 4.0 * config.n_layers * config.dim * mean_context


def output_flops(config: ModelConfig) -> float:
    """Forward pass of one row through the output layer."""
    return 2.0 * config.vocab_size * config.dim
