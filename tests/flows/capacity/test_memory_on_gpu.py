"""The planned peak of a training step against what a GPU's allocator counts: `pytest -m gpu`."""

from dataclasses import replace

import pytest
import torch

from flows.capacity import memory
from flows.capacity.memory import MicroBatch
from kernels.attention import Documents
from kernels.model import CausalLM, ModelConfig
from stages.runtime.settings import EngineSettings

pytestmark = pytest.mark.gpu

CONFIG = ModelConfig(32_000, 1024, 4, 16, 16, 2816, max_seq_len=2048)
LENGTHS = [2048] * 4


@pytest.mark.parametrize("n_kv_heads", [16, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", ["loss", "logprobs"])
def test_the_peak_of_a_forward_and_backward_pass(
    mode: str, checkpointing: bool, n_kv_heads: int
) -> None:
    config = replace(CONFIG, n_kv_heads=n_kv_heads)
    with torch.device("cuda"):
        model = CausalLM(config, None).to(torch.bfloat16)
        tokens = torch.randint(config.vocab_size, (sum(LENGTHS),))
        rows = torch.arange(len(tokens) - 1)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02) if weight.dim() > 1 else torch.nn.init.ones_(weight)
    model.backbone.activation_checkpointing = checkpointing
    documents = Documents.of(LENGTHS, "cuda")

    def step() -> None:
        out = model(tokens, documents, rows, tokens[1:], mode=mode)
        (out.sum() if mode == "loss" else (out.logprobs + out.entropy).sum()).backward()

    step()  # from here on the gradients are there
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    measured = torch.cuda.max_memory_allocated() - before
    settings = EngineSettings(precision="bf16", activation_checkpointing=checkpointing)
    batch = MicroBatch(len(tokens), len(rows), mode)  # pyright: ignore[reportArgumentType]
    assert memory.activations(config, settings, batch) == pytest.approx(measured, rel=0.1)
