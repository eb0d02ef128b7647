"""What do DeepSpeed and a second process cost over a plain PyTorch loop?

    python -m benchmarks.zero

One lap is an optimizer step on the same global batch: `stages.pretrain.run`, or a loop of a few
lines around the same model. Two processes have one thread each, one process has both.
"""

import multiprocessing
import os
import socket

import torch
from torch import nn

from benchmarks.benchmark import Benchmark, main
from benchmarks.pretrain import Size, token_stream, train_stage
from benchmarks.shapes import policy
from benchmarks.sides import Side
from benchmarks.stage_work import seed_everything
from benchmarks.turns import Turns
from stages.models.batches import Example, collate
from stages.runtime.engine import EngineSettings
from stages.runtime.heap import keep_freed_memory
from stages.runtime.modules import adamw
from stages.runtime.settings import AdamSettings, OptimizerSettings

_NUM_RANKS = 2


def plain_loop(turns: Turns, size: Size) -> None:
    """One process, torch only, the kernels' model; freed memory is kept, as the stages do."""
    seed_everything(0)
    keep_freed_memory()
    model = policy(size.model)
    optimizer = adamw(
        model, OptimizerSettings(learning_rate=3e-4), AdamSettings(), 3e-4, fused=False
    )
    steps = token_stream(size, turns.num_laps)[:-1].reshape(
        turns.num_laps, size.global_batch_size, size.sequence_length
    )
    turns.start()
    for blocks in steps:
        flat = collate([Example(b.tolist(), [True] * len(b)) for b in blocks], torch.device("cpu"))
        loss = model(flat.tokens, flat.documents, flat.rows, flat.targets) / len(flat.rows)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.lap(blocks.size, loss=loss.item())


def one_process(turns: Turns, size: Size) -> None:
    """The stage's loop, as inline runs have it."""
    train_stage(turns, size, EngineSettings())


def zero_1(turns: Turns, size: Size) -> None:
    """Two ranks share the optimizer state."""
    _on_two_ranks(turns, size, 1)


def zero_2(turns: Turns, size: Size) -> None:
    """Two ranks share gradients as well."""
    _on_two_ranks(turns, size, 2)


def zero_3(turns: Turns, size: Size) -> None:
    """Two ranks share weights as well."""
    _on_two_ranks(turns, size, 3)


def _on_two_ranks(turns: Turns, size: Size, stage: int) -> None:
    """This process is rank 0 and keeps the time; the other follows in the collectives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    others = [
        multiprocessing.get_context("spawn").Process(
            target=_follow, args=(index, port, turns.num_laps, size, stage), daemon=True
        )
        for index in range(1, _NUM_RANKS)
    ]
    for other in others:
        other.start()
    _rank(0, port, turns, size, stage)
    for other in others:
        other.join()


def _follow(index: int, port: int, num_laps: int, size: Size, stage: int) -> None:
    silent = Turns(num_laps - 1, 1, wait=lambda: None, report=lambda _: None)
    _rank(index, port, silent, size, stage)


def _rank(index: int, port: int, turns: Turns, size: Size, stage: int) -> None:
    os.environ.update(
        RANK=str(index),
        LOCAL_RANK=str(index),
        WORLD_SIZE=str(_NUM_RANKS),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(max(1, torch.get_num_threads() // _NUM_RANKS) if index == 0 else 1)
    train_stage(turns, size, EngineSettings(zero_stage=stage))


BENCHMARK = Benchmark(
    name="zero",
    question=__doc__.splitlines()[0],
    unit="tokens/s",
    size=Size(),
    laps_per_round=3,
    sides=(
        Side("plain torch", plain_loop, "one process, the kernels' model, AdamW, no engine"),
        Side("one process", one_process, "the stage's loop, ZeRO-0"),
        Side("ZeRO-1, two processes", zero_1, "gloo on one machine, one thread each"),
        Side("ZeRO-2, two processes", zero_2, "the same"),
        Side("ZeRO-3, two processes", zero_3, "the same"),
    ),
    remarks="The ratio is the price: how many times as fast the plain loop is.",
)

if __name__ == "__main__":
    main(BENCHMARK)
