"""The planned bytes of passes and caches against those that the real model allocates on a CPU.

What is kept for the backward pass must be right to the byte; peaks within a tenth, since a few
temporaries of the size of a layer's input come and go.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from allocated import PeakBytes, live_bytes, nothing_before, saved_bytes
from torch import Tensor, nn

from flows.capacity import memory
from flows.capacity.memory import MicroBatch
from kernels.attention import Documents
from kernels.cross_entropy import CHUNK_ELEMENTS_CUDA
from kernels.decoding import prefill
from kernels.generation import Sampling, generate
from kernels.heads import ScoreHead, ValueModel
from kernels.model import CausalLM, ModelConfig
from stages.runtime.engine import EngineSettings
from stages.runtime.modules import set_activation_checkpointing, to_bf16

CONFIG = ModelConfig(
    vocab_size=256, dim=64, n_layers=3, n_heads=4, n_kv_heads=2, ffn_hidden=160, max_seq_len=256
)
NUM_TOKENS = 512
PEAK = 0.1


@pytest.fixture(autouse=True)
def _only_what_the_test_makes() -> Iterator[None]:
    with nothing_before():
        yield


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is planned are GPUs: attention keeps no probabilities there, and a chunk is large."""
    monkeypatch.setattr("kernels.attention.worth_blocks", lambda _: False)
    monkeypatch.setattr("kernels.cross_entropy._CHUNK_ROWS_CPU", CHUNK_ELEMENTS_CUDA)


@dataclass
class Pass:
    """The real model with one micro-batch."""

    module: nn.Module
    run: Callable[[], Tensor]
    batch: MicroBatch


def forward_pass(config: ModelConfig, engine: EngineSettings, mode: str) -> Pass:
    generator = torch.Generator().manual_seed(0)
    policy = CausalLM(config, generator)
    scorer = ValueModel(policy.backbone, ScoreHead(config, generator))
    module = scorer if mode == "score" else policy
    if engine.precision == "bf16":
        to_bf16(module)
    set_activation_checkpointing(module, engine.activation_checkpointing)
    tokens = torch.randint(0, config.vocab_size, (NUM_TOKENS,), generator=generator)
    documents = Documents.of([128] * 4)
    rows = torch.arange(NUM_TOKENS - 1)

    def run() -> Tensor:
        if mode == "score":
            return module(tokens, documents).sum()
        out = module(tokens, documents, rows, tokens[1:], mode=mode)
        return (out.logprobs + out.entropy).sum() if mode == "logprobs" else out.sum()

    num_rows = NUM_TOKENS if mode == "score" else NUM_TOKENS - 1
    return Pass(module, run, MicroBatch(NUM_TOKENS, num_rows, mode))  # pyright: ignore


def engine(precision: str, checkpointing: bool) -> EngineSettings:
    values = {"precision": precision, "activation_checkpointing": checkpointing}
    return EngineSettings.model_validate(values)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_layer_keeps_is_right_to_the_byte(
    precision: str, n_kv_heads: int, checkpointing: bool
) -> None:
    settings, kept = engine(precision, checkpointing), []
    for n_layers in (2, 3):
        config = replace(CONFIG, n_kv_heads=n_kv_heads, n_layers=n_layers)
        step = forward_pass(config, settings, "loss")
        kept.append(saved_bytes(step.run, step.module.parameters()))
    size = memory.element_bytes(settings)
    planned = size * CONFIG.dim  # with checkpointing, a layer's input
    if not checkpointing:
        planned = memory.layer_bytes(replace(CONFIG, n_kv_heads=n_kv_heads), size, fused=False)
    assert kept[1] - kept[0] == NUM_TOKENS * planned


@pytest.mark.parametrize(
    ("precision", "checkpointing", "mode"),
    [
        ("fp32", False, "loss"),
        ("fp32", True, "loss"),
        ("bf16", False, "loss"),
        ("bf16", True, "loss"),
        ("bf16", False, "logprobs"),
        ("bf16", False, "score"),
    ],
)
def test_the_peak_of_a_forward_and_backward_pass(
    precision: str, checkpointing: bool, mode: str
) -> None:
    settings = engine(precision, checkpointing)
    step = forward_pass(CONFIG, settings, mode)
    step.run().backward()  # from here on the gradients are there
    before = live_bytes()
    with PeakBytes() as measured:
        step.run().backward()
    planned = memory.activations(CONFIG, settings, step.batch, fused=False)
    assert planned == pytest.approx(measured.peak - before, rel=PEAK)


def test_the_gpu_keeps_less_than_the_cpu() -> None:
    for size in (2, 4):
        fused, plain = (memory.layer_bytes(CONFIG, size, fused=f) for f in (True, False))
        # attention's output in place, silu(gate) computed again
        assert plain - fused == size * 64 + size * 160


def test_checkpointing_saves_most_of_a_deep_model() -> None:
    deep, batch = replace(CONFIG, n_layers=80), MicroBatch(4096, 4096)
    with_it, without = (memory.activations(deep, engine("bf16", c), batch) for c in (True, False))
    assert with_it < without / 8


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_cache_and_reading_into_it(precision: str) -> None:
    settings = engine(precision, False)
    model, size = forward_pass(CONFIG, settings, "loss").module, memory.element_bytes(settings)
    assert isinstance(model, CausalLM)
    prompts = [torch.randint(0, 256, (64,)).tolist() for _ in range(16)]
    planned = memory.kv_cache(CONFIG, size, num_rows=16, num_columns=128)
    with torch.inference_mode():
        decoder, _ = prefill(model, prompts, num_new_columns=64)
    assert sum(t.nbytes for t in decoder.cache.keys + decoder.cache.values) == planned
    del decoder

    before = live_bytes()
    with PeakBytes() as measured:
        generate(model, prompts, Sampling(max_new_tokens=64), eos_id=1, seed=0)
    beside = memory.generation(CONFIG, size, planned, num_rows=16, num_prompt_tokens=16 * 64)
    assert planned + beside == pytest.approx(measured.peak - before, rel=0.2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_pass_without_gradients(precision: str) -> None:
    settings = engine(precision, False)
    step = forward_pass(CONFIG, settings, "measure")
    before = live_bytes()
    with torch.no_grad(), PeakBytes() as measured:
        step.run()
    planned = memory.evaluation(CONFIG, memory.element_bytes(settings), NUM_TOKENS)
    assert planned == pytest.approx(measured.peak - before, rel=0.2)
