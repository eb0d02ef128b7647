"""Training and generation on a few layers of a large model's width, bf16, random weights.

Legend: L layers, E model dimension.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kernels.attention import Documents
from kernels.decoding import Decoder, GraphedDecoder, prefill
from kernels.generation import Sampling, generate
from kernels.model import CausalLM, ModelConfig

CONVENTION = (
    "Utilisation counts 6 operations a parameter and token, the input embedding (a look-up) left "
    "out, plus 12 · layers · dim · context for attention, its masked half included; what "
    "activation checkpointing computes again is not counted."
)

PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
"""Dense bf16, from the data sheets; of another device the utilisation is not given."""


@dataclass(frozen=True)
class Size:
    """A model and how much work it gets."""

    model: ModelConfig
    num_sequences: int
    """Of the model's full context, in a training step."""
    num_prompts: int
    num_prompt_tokens: int
    num_new_tokens: int
    num_repeats: int
    """Timed; the median counts."""


@dataclass(frozen=True)
class Training:
    """Forward, backward and a fused AdamW step with bf16 weights and moments."""

    documents: str
    checkpointing: bool
    tokens_per_second: float
    tflops: float
    utilisation: float | None
    peak_gib: float | None


@dataclass(frozen=True)
class Generation:
    """Sampling without EOS, so that every row writes all its tokens."""

    what: str
    rows: int
    tokens_per_second: float
    milliseconds_per_step: float
    peak_gib: float | None


def training(device: torch.device, size: Size) -> Iterator[Training]:
    """One row for each layout of the documents, and one with activation checkpointing."""
    context = size.model.max_seq_len
    for num_documents, checkpointing in ((1, False), (8, False), (1, True)):
        lengths = [context // num_documents] * (num_documents * size.num_sequences)
        yield _train(device, size, lengths, checkpointing)


def _train(device: torch.device, size: Size, lengths: list[int], checkpointing: bool) -> Training:
    model = _model(device, size.model)
    model.backbone.activation_checkpointing = checkpointing
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    documents = Documents.of(lengths, device)
    num_tokens = sum(lengths)
    tokens = torch.randint(size.model.vocab_size, (num_tokens,), device=device)
    rows = torch.arange(num_tokens - 1, device=device)

    def step() -> None:
        loss = model(tokens, documents, rows, tokens[1:]) / len(rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds, peak_gib = _measure(step, device, size.num_repeats)
    flops = num_tokens * flops_per_token(size.model, lengths[0])
    return Training(
        documents=f"{len(lengths)} of {lengths[0]}",
        checkpointing=checkpointing,
        tokens_per_second=num_tokens / seconds,
        tflops=flops / seconds / 1e12,
        utilisation=_utilisation(flops / seconds, device),
        peak_gib=peak_gib,
    )


def flops_per_token(model: ModelConfig, num_context_tokens: int) -> float:
    """See CONVENTION."""
    look_up = 0 if model.tie_embeddings else 6.0 * model.vocab_size * model.dim
    return model.flops_per_token(num_context_tokens) - look_up


def generation(device: torch.device, size: Size) -> Iterator[Generation]:
    """All of `generate`, and its model steps alone: recorded where there is a GPU, and as calls."""
    model = _model(device, size.model)
    for num_rows in (size.num_prompts, max(1, size.num_prompts // 16)):
        shape = (num_rows, size.num_prompt_tokens)
        prompts = torch.randint(size.model.vocab_size, shape).tolist()
        sampling = Sampling(size.num_new_tokens)
        work = partial(generate, model, prompts, sampling, eos_id=-1, seed=0)
        yield _generation_row("generate", work, device, size, num_rows)
        for kind in (GraphedDecoder, Decoder) if device.type == "cuda" else (Decoder,):
            work = partial(_write, kind, model, prompts, size.num_new_tokens)
            yield _generation_row(f"{kind.__name__}, greedy", work, device, size, num_rows)


@torch.inference_mode()
def _write(
    kind: type[Decoder], model: CausalLM, prompts: list[list[int]], num_new_tokens: int
) -> None:
    decoder, logits = prefill(model, prompts, num_new_tokens)
    decoder = kind(model, decoder.cache)
    for _ in range(num_new_tokens - 1):
        logits = decoder.step(logits.argmax(dim=-1))


def _generation_row(
    what: str, work: Callable[[], Any], device: torch.device, size: Size, num_rows: int
) -> Generation:
    seconds, peak_gib = _measure(work, device, size.num_repeats)
    return Generation(
        what=what,
        rows=num_rows,
        tokens_per_second=num_rows * size.num_new_tokens / seconds,
        milliseconds_per_step=1000 * seconds / size.num_new_tokens,
        peak_gib=peak_gib,
    )


def _model(device: torch.device, config: ModelConfig) -> CausalLM:
    with torch.device(device):
        model = CausalLM(config, None).to(torch.bfloat16)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02) if weight.dim() > 1 else torch.nn.init.ones_(weight)
    return model


def _measure(
    work: Callable[[], Any], device: torch.device, num_repeats: int
) -> tuple[float, float | None]:
    """Median seconds after two runs to warm up, and the most memory that a timed run held."""
    is_cuda = device.type == "cuda"
    for _ in range(2):
        work()
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [_time(work, is_cuda) for _ in range(num_repeats)]
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if is_cuda else None
    return statistics.median(seconds), peak


def _time(work: Callable[[], Any], is_cuda: bool) -> float:
    if is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _utilisation(flops_per_second: float, device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peaks = [peak for part, peak in PEAK_FLOPS.items() if part in name]
    return flops_per_second / peaks[0] if peaks else None
