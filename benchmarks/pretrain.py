"""Does a pretraining step cost less than one of Hugging Face's Trainer?

    python -m benchmarks.pretrain

One lap is an optimizer step of `stages.pretrain.run`: full sequences of random tokens, no
padding on either side, the same model, optimizer and precision.
"""

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.artifacts import publish_table, publish_tokenizer
from benchmarks.benchmark import Benchmark, main
from benchmarks.peers import HUGGING_FACE
from benchmarks.shapes import (
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
from data_contracts.store import Store
from kernels.model import ModelConfig
from stages import pretrain
from stages.runtime.engine import EngineSettings


@dataclass(frozen=True)
class Size:
    """One optimizer step: this many full sequences."""

    model: ModelConfig = SMALL
    sequence_length: int = 512
    global_batch_size: int = 8
    precision: Precision = "fp32"


def ours(turns: Turns, size: Size) -> None:
    """The stage's loop."""
    train_stage(turns, size, EngineSettings(precision=size.precision))


def train_stage(turns: Turns, size: Size, engine_settings: EngineSettings) -> None:
    """The stage on every rank of the process group."""
    with timed_work(turns) as work:
        pretrain.run(stage_config(size, turns.num_laps, engine_settings, work.store), work)


def stage_config(
    size: Size, num_steps: int, engine: EngineSettings, store: Store
) -> pretrain.Config:
    """The stage's settings for so many steps, each in one forward pass of a rank."""
    architecture = {name: getattr(size.model, name) for name in pretrain.ModelSettings.model_fields}
    return pretrain.Config(
        token_shards=publish_table(store, "token_shards", shard_rows(size, num_steps)),
        tokenizer=publish_tokenizer(store, size.model.vocab_size),
        model=pretrain.ModelSettings(**architecture),
        num_tokens=num_steps * size.global_batch_size * size.sequence_length,
        sequence_length=size.sequence_length,
        global_batch_size=size.global_batch_size,
        micro_batch_size=size.global_batch_size,
        warmup_steps=1,
        engine=engine,
    )


def shard_rows(size: Size, num_steps: int) -> list[dict[str, Any]]:
    """One long document to train on, and a short one to validate with."""
    stream = token_stream(size, num_steps)
    splits = {"train": stream, "validation": stream[: size.sequence_length + 1]}
    return [
        {
            "document_id": split,
            "source": "random",
            "split": split,
            "num_bytes": len(tokens),
            "tokens": tokens.tolist(),
        }
        for split, tokens in splits.items()
    ]


def token_stream(size: Size, num_steps: int) -> np.ndarray:
    """Random ids, enough for every step to see new ones."""
    length = num_steps * size.global_batch_size * size.sequence_length + 1
    return np.random.default_rng(0).integers(
        NUM_SPECIAL, size.model.vocab_size, length, dtype=np.int32
    )


def trainer(turns: Turns, size: Size) -> None:
    """Trainer as it comes."""
    _train(turns, size)


def compiled_trainer(turns: Turns, size: Size) -> None:
    """Trainer with torch.compile."""
    _train(turns, size, torch_compile=True)


def _train(turns: Turns, size: Size, **settings: Any) -> None:
    import datasets
    from transformers import Trainer, TrainingArguments

    from benchmarks.hugging_face import FedTokens, Laps, causal_twin, common_arguments

    stream = token_stream(size, turns.num_laps)[:-1].reshape(-1, size.sequence_length)
    model = causal_twin(policy(size.model))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            **common_arguments(turns, folder, size.precision),
            learning_rate=3e-4,
            warmup_steps=1,
            per_device_train_batch_size=size.global_batch_size,
            **settings,
        )
        data = datasets.Dataset.from_dict({"input_ids": stream, "labels": stream})
        Trainer(
            model,
            arguments,
            train_dataset=data.with_format("torch"),
            callbacks=[Laps(turns, FedTokens(model))],
        ).train()


def floor(size: Size) -> Floor:
    """Forward and twice as much backward, the output layer on every token."""
    flops = backbone_flops(size.model, size.sequence_length / 2) + output_flops(size.model)
    return Floor(3 * flops, "forward, backward; attention counted where it is not masked")


BENCHMARK = Benchmark(
    name="pretrain",
    question=__doc__.splitlines()[0],
    unit="tokens/s",
    size=Size(),
    laps_per_round=4,
    sides=(
        Side("ours", ours, "stages.pretrain, the batch in one forward pass, ZeRO-0"),
        Side(
            "Trainer",
            trainer,
            "transformers' Trainer as it comes: the batch in one pass, SDPA, fused AdamW",
            HUGGING_FACE,
            target=1.25,
        ),
        Side(
            "Trainer, compiled",
            compiled_trainer,
            "the same with torch_compile=True (Inductor)",
            HUGGING_FACE,
        ),
    ),
    floor=floor,
    on_gpu=Size(MEDIUM, sequence_length=2048, precision="bf16"),
)

if __name__ == "__main__":
    main(BENCHMARK)
