"""Every benchmark at a size that takes a second."""

import dataclasses
from typing import Any

from benchmarks import (
    attention,
    generation,
    loss,
    ppo,
    pretrain,
    reward_model,
    sft,
    validation,
    zero,
)
from kernels.model import ModelConfig

TINY = ModelConfig(
    vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=2, ffn_hidden=64, max_seq_len=64
)
STEP = pretrain.Size(TINY, sequence_length=32, global_batch_size=2)
_PPO = ppo.Size(TINY, num_prompts=4, prompt_length=16, max_new_tokens=6)
SIZES: dict[str, Any] = {
    "pretrain": STEP,
    "zero": STEP,
    "sft": sft.Size(TINY, sequence_length=64, global_batch_size=2),
    "reward_model": reward_model.Size(TINY, max_tokens=64, global_batch_size=2),
    "ppo": _PPO,
    "ppo-bf16": dataclasses.replace(_PPO, precision="bf16"),
    "generation-fixed": generation.Size(TINY, 4, 6, 6, 8),
    "generation-varied": generation.Size(TINY, 4, 3, 8, 8, mean_new_tokens=4),
    "loss-mean": loss.Size(20, 8, 30),
    "loss-logprobs": loss.Size(20, 8, 30),
    "attention": attention.Size((3, 5, 8), 2, 4),
    "validation": validation.Size(50),
}
BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        pretrain.BENCHMARK,
        sft.BENCHMARK,
        reward_model.BENCHMARK,
        *ppo.BENCHMARKS,
        *generation.BENCHMARKS,
        *loss.BENCHMARKS,
        attention.BENCHMARK,
        validation.BENCHMARK,
        zero.BENCHMARK,
    )
}
