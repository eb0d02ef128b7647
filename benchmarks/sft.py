"""Does fine-tuning on packed demonstrations cost less than TRL's SFTTrainer?

    python -m benchmarks.sft

One lap is an optimizer step of `stages.models.finetuning.finetune`, the loop of the SFT stage, on
demonstrations of varied length with the loss on their answers. Counted are the tokens of whole
demonstrations, prompts included and padding not.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.benchmark import Benchmark, main
from benchmarks.peers import HUGGING_FACE
from benchmarks.shapes import (
    BOS_ID,
    EOS_ID,
    MEDIUM,
    NUM_SPECIAL,
    SMALL,
    Floor,
    Precision,
    backbone_flops,
    output_flops,
    policy,
)
from benchmarks.sides import Side
from benchmarks.stage_work import timed_work
from benchmarks.turns import Turns
from kernels.model import ModelConfig
from stages.models.batches import Example
from stages.models.finetuning import FinetuningSettings, finetune
from stages.runtime.settings import EngineSettings
from stages.text.packing import pack

PROMPT_SHARE = 0.3
MEDIAN_TOKENS = 120


@dataclass(frozen=True)
class Size:
    """One optimizer step: this many packed sequences."""

    model: ModelConfig = SMALL
    sequence_length: int = 512
    global_batch_size: int = 8
    precision: Precision = "fp32"


def demonstrations(size: Size, num_steps: int) -> list[Example]:
    """Just enough for so many steps of packed sequences; log-normal lengths, a median of 120."""
    rng = np.random.default_rng(0)
    needed = num_steps * size.global_batch_size
    median = MEDIAN_TOKENS * size.sequence_length / SMALL.max_seq_len
    examples: list[Example] = []
    while num_sequences(examples, size) < needed:
        examples += _some(rng, size, median, needed)
    while num_sequences(examples[:-1], size) >= needed:
        examples.pop()
    return examples


def _some(rng: np.random.Generator, size: Size, median: float, count: int) -> Iterator[Example]:
    lengths = np.exp(rng.normal(np.log(median), 0.7, count)).round().astype(int)
    for length in lengths.clip(8, size.sequence_length).tolist():
        body = rng.integers(NUM_SPECIAL, size.model.vocab_size, length - 2).tolist()
        num_prompt = round(PROMPT_SHARE * length)
        mask = [False] * num_prompt + [True] * (length - num_prompt)
        yield Example([BOS_ID, *body, EOS_ID], mask)


def num_sequences(examples: list[Example], size: Size) -> int:
    """Sequences that the demonstrations fill."""
    return len(pack([len(e.tokens) for e in examples], size.sequence_length))


def ours(turns: Turns, size: Size) -> None:
    """The stage's loop."""
    examples = demonstrations(size, turns.num_laps)
    settings = FinetuningSettings(
        sequence_length=size.sequence_length,
        global_batch_size=size.global_batch_size,
        micro_batch_size=MICRO_BATCH_SIZE,
        num_epochs=1,
        engine=EngineSettings(precision=size.precision),
    )
    model = policy(size.model)
    with timed_work(turns) as work:
        finetune(model, examples, settings, 0, work)


MICRO_BATCH_SIZE = 4


def packed_alone(turns: Turns, size: Size) -> None:
    """One packed sequence at a time: the dense mask that TRL makes stays small."""
    _train(turns, size, packing=True, micro_batch_size=1)


def packed(turns: Turns, size: Size) -> None:
    """TRL's packing as it comes: the micro-batch is flattened into one long row."""
    _train(turns, size, packing=True, micro_batch_size=size.global_batch_size)


def padded(turns: Turns, size: Size) -> None:
    """TRL without packing."""
    _train(turns, size, packing=False, micro_batch_size=size.global_batch_size)


def _train(turns: Turns, size: Size, packing: bool, micro_batch_size: int) -> None:
    import datasets
    from trl import SFTConfig, SFTTrainer

    from benchmarks.hugging_face import FedTokens, Laps, causal_twin, common_arguments, tokenizer

    examples = demonstrations(size, turns.num_laps)
    model = causal_twin(policy(size.model))
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            **common_arguments(turns, folder, size.precision),
            max_length=size.sequence_length,
            packing=packing,
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=size.global_batch_size // micro_batch_size,
            gradient_checkpointing=False,
        )
        SFTTrainer(
            model,
            arguments,
            train_dataset=datasets.Dataset.from_list([_row(e) for e in examples]),
            processing_class=tokenizer(size.model.vocab_size),
            callbacks=[Laps(turns, FedTokens(model))],
        ).train()


def _row(example: Example) -> dict[str, Any]:
    pairs = zip(example.tokens, example.loss_mask, strict=True)
    return {"input_ids": example.tokens, "labels": [t if keep else -100 for t, keep in pairs]}


def floor(size: Size) -> Floor:
    """As in pretraining, but only answers go beyond the last attention."""
    examples = demonstrations(size, 1)
    num_tokens = sum(len(e.tokens) for e in examples)
    context = sum(len(e.tokens) ** 2 for e in examples) / num_tokens / 2
    share = sum(e.num_loss_tokens for e in examples) / num_tokens
    flops = backbone_flops(size.model, context, share) + share * output_flops(size.model)
    return Floor(
        3 * flops, "forward, backward; documents apart, only answers beyond the last attention"
    )


BENCHMARK = Benchmark(
    name="sft",
    question=__doc__.splitlines()[0],
    unit="tokens/s",
    size=Size(),
    laps_per_round=3,
    sides=(
        Side("ours", ours, f"stages.sft, packed, micro-batch {MICRO_BATCH_SIZE}, ZeRO-0"),
        Side(
            "SFTTrainer, packed alone",
            packed_alone,
            "packing=True, micro-batch 1, 8 accumulated: its fastest setting on two cores",
            HUGGING_FACE,
            target=2.0,
        ),
        Side(
            "SFTTrainer, packed",
            packed,
            "packing=True, per-device batch 8 as by default (SDPA, a dense mask of all tokens)",
            HUGGING_FACE,
            target=4.0,
        ),
        Side("SFTTrainer, padded", padded, "packing=False, batch 8", HUGGING_FACE),
    ),
    floor=floor,
    on_gpu=Size(MEDIUM, sequence_length=2048, precision="bf16"),
    remarks=(
        "Gradient checkpointing, on by default in TRL, is off on both sides: it would cost TRL "
        "another third."
    ),
)

if __name__ == "__main__":
    main(BENCHMARK)
