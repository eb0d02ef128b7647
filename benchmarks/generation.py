"""Does sampling responses cost less than Hugging Face's generate?

    python -m benchmarks.generation

One lap is one call of `kernels.generation.generate`, the call of every stage that samples, at
temperature 1 from the whole vocabulary. Counted are the tokens of the responses up to their EOS.
Twice: all responses of one length, and responses of varied length to prompts of varied length.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.benchmark import Benchmark, main
from benchmarks.peers import HUGGING_FACE
from benchmarks.shapes import (
    EOS_ID,
    MEDIUM,
    NUM_SPECIAL,
    PAD_ID,
    SMALL,
    Floor,
    Precision,
    backbone_flops,
    output_flops,
    policy,
)
from benchmarks.sides import Side
from benchmarks.stage_work import process_group, seed_everything
from benchmarks.turns import Turns
from kernels.generation import Sampling, generate
from kernels.model import CausalLM, ModelConfig


@dataclass(frozen=True)
class Size:
    """One call: so many prompts."""

    model: ModelConfig = SMALL
    num_prompts: int = 32
    min_prompt: int = 64
    max_prompt: int = 64
    max_new_tokens: int = 128
    mean_new_tokens: float | None = None
    """Of a response that nothing cuts off; None: no response ever ends."""
    precision: Precision = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float32 if self.precision == "fp32" else torch.bfloat16


def prompts(size: Size) -> list[list[int]]:
    """Random ids; lengths spread evenly."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(size.min_prompt, size.max_prompt + 1, size.num_prompts)
    return [rng.integers(NUM_SPECIAL, size.model.vocab_size, n).tolist() for n in lengths]


@torch.no_grad()
def with_ending(model: CausalLM, probability: float) -> CausalLM:
    """The same model, which writes EOS with about this probability whatever came before.

    Dimension 0 of every hidden state becomes a constant, and the EOS row of the output layer
    reads it.
    """
    dim, vocab_size = model.config.dim, model.config.vocab_size
    model.backbone.embedding.weight[:, 0] = 100.0
    read = math.log(probability / (1 - probability) * (vocab_size - 1))
    model.lm_head.weight[:, 0] = 0.0
    model.lm_head.weight[EOS_ID] = 0.0
    model.lm_head.weight[EOS_ID, 0] = read / math.sqrt(dim)  # the norm makes of 100: sqrt(dim)
    return model


def sampled_model(size: Size) -> CausalLM:
    """The policy of both sides."""
    model = policy(size.model)
    mean = size.mean_new_tokens
    return with_ending(model, 1e-9 if mean is None else 1 / mean)


def ours(turns: Turns, size: Size) -> None:
    """As the stages call it."""
    seed_everything(0)
    model, texts = sampled_model(size).to(process_group().device, size.dtype), prompts(size)
    sampling = Sampling(max_new_tokens=size.max_new_tokens)
    turns.start()
    for lap in range(turns.num_laps):
        out = generate(model, texts, sampling, eos_id=EOS_ID, seed=lap)
        turns.lap(sum(map(len, out.responses)))


def hugging_face(turns: Turns, size: Size) -> None:
    """All prompts in one left-padded batch."""
    _generate(turns, size, size.num_prompts)


def hugging_face_by_32(turns: Turns, size: Size) -> None:
    """Prompts sorted by length, 32 at a time."""
    _generate(turns, size, 32)


def hugging_face_static(turns: Turns, size: Size) -> None:
    """With the static cache."""
    _generate(turns, size, size.num_prompts, cache_implementation="static")


def _generate(turns: Turns, size: Size, batch_size: int, **settings: Any) -> None:
    from benchmarks.hugging_face import DEVICE, causal_twin

    torch.manual_seed(0)
    model = causal_twin(sampled_model(size)).eval().to(DEVICE, size.dtype)
    texts = sorted(prompts(size), key=len)
    batches = [_left_padded(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
    options = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": size.max_new_tokens,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }
    turns.start()
    for _ in range(turns.num_laps):
        num_tokens = 0
        for ids, mask in batches:
            ids, mask = ids.to(DEVICE), mask.to(DEVICE)
            out = model.generate(input_ids=ids, attention_mask=mask, **options, **settings)
            num_tokens += num_written(out[:, ids.shape[1] :])
        turns.lap(num_tokens)


def num_written(responses: torch.Tensor) -> int:
    """Tokens up to and with each response's EOS."""
    is_eos = (responses == EOS_ID).long()
    return int((is_eos.cumsum(dim=1) - is_eos == 0).sum())


def _left_padded(texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, texts))
    ids = torch.tensor([[PAD_ID] * (width - len(text)) + text for text in texts])
    return ids, (ids != PAD_ID).long()


def floor(size: Size) -> Floor:
    """A response token passes transformer and output layer once; its prompt the transformer."""
    mean_prompt = (size.min_prompt + size.max_prompt) / 2
    mean_response = min(size.mean_new_tokens or size.max_new_tokens, size.max_new_tokens)
    decode = backbone_flops(size.model, mean_prompt + mean_response / 2) + output_flops(size.model)
    prefill = backbone_flops(size.model, mean_prompt / 2, 1 / mean_prompt) * mean_prompt
    parameters = 4 * size.model.num_parameters() / 2**20
    return Floor(
        decode + prefill / mean_response,
        f"reading the prompts included; each step also reads the {parameters:.0f} MiB of weights",
    )


FIXED = Benchmark(
    name="generation-fixed",
    question=__doc__.splitlines()[0],
    unit="tokens/s",
    size=Size(),
    laps_per_round=2,
    sides=(
        Side("ours", ours, "kernels.generation.generate"),
        Side("generate", hugging_face, "as it comes: dynamic cache", HUGGING_FACE, target=1.6),
        Side(
            "generate, static cache",
            hugging_face_static,
            "cache_implementation='static'",
            HUGGING_FACE,
        ),
    ),
    floor=floor,
    on_gpu=Size(MEDIUM, num_prompts=64, min_prompt=256, max_prompt=256, precision="bf16"),
)

VARIED = dataclasses.replace(
    FIXED,
    name="generation-varied",
    size=Size(num_prompts=128, min_prompt=16, max_prompt=128, mean_new_tokens=44),
    on_gpu=Size(MEDIUM, 256, min_prompt=64, max_prompt=512, mean_new_tokens=44, precision="bf16"),
    laps_per_round=1,
    sides=(
        Side("ours", ours, "kernels.generation.generate, all prompts in one call"),
        Side(
            "generate",
            hugging_face_by_32,
            "prompts sorted by length, 32 at a time, left-padded",
            HUGGING_FACE,
            target=3.0,
        ),
        Side(
            "generate, one batch",
            hugging_face,
            "all prompts left-padded into one batch",
            HUGGING_FACE,
        ),
    ),
)

BENCHMARKS = (FIXED, VARIED)

if __name__ == "__main__":
    main(*BENCHMARKS)
