"""The real model, small, on a batch of documents that splits over two ranks."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from kernels import causal_blocks, products
from kernels.attention import Documents
from kernels.model import CausalLM, ModelConfig
from runtime_toys.models import OPTIMIZER, SCHEDULE
from stages.runtime.distributed import Rank
from stages.runtime.engine import Engine, EngineSettings

CONFIG = ModelConfig(vocab_size=64, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_hidden=48)
MODES = ("loss", "logprobs", "tied", "large")
LENGTHS = (5, 9, 7, 3)
ROWS = sum(LENGTHS) - len(LENGTHS)


def train_llama(rank: Rank, zero_stage: int, mode: str, num_steps: int = 5) -> list[float]:
    """Losses over all ranks; documents go round the ranks, each of them is one micro-batch.

    "large" is "loss" by the functions that take large batches on the CPU.
    """
    if mode == "large":
        with as_large():
            return train_llama(rank, zero_stage, "loss", num_steps)
    settings = EngineSettings.model_validate(
        {"zero_stage": zero_stage, "activation_checkpointing": mode == "loss"}
    )
    config = dataclasses.replace(CONFIG, tie_embeddings=mode == "tied")
    model = CausalLM(config, torch.Generator().manual_seed(0))
    engine = Engine(model, OPTIMIZER, SCHEDULE, settings, rank)
    losses = []
    for _ in range(num_steps):
        total = 0.0
        mine = range(rank.index, len(LENGTHS), rank.world_size)
        for i in mine:
            loss = document_loss(engine, i, mode)
            engine.backward(loss, last=i == mine[-1])
            total += loss.item()
        engine.step()
        losses.append(rank.sum(total))
    return losses


@contextmanager
def as_large() -> Iterator[None]:
    """No product and no attention is too small for oneDNN and for blocks of queries."""
    with (
        patch.multiple(products, FEWEST_MULTIPLICATIONS=0, FEWEST_OF_A_STEP=0),
        patch.multiple(causal_blocks, _FEWEST=0),
    ):
        yield


def document_loss(engine: Engine, i: int, mode: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(i)
    tokens = torch.randint(0, CONFIG.vocab_size, (LENGTHS[i],), generator=generator)
    documents = Documents.of([LENGTHS[i]], torch.device("cpu"))
    rows, targets = torch.arange(LENGTHS[i] - 1), tokens[1:]
    if mode != "logprobs":
        return engine(tokens, documents, rows, targets) / ROWS
    found = engine(tokens, documents, rows, targets, temperature=0.7, mode="logprobs")
    return (-found.logprobs - 0.1 * found.entropy).sum() / ROWS
