"""Does a reward model's step cost less than one of TRL's RewardTrainer with margins?

    python -m benchmarks.reward_model

One lap is an optimizer step of `stages.reward_model.train` on pairs of varied length that share
their prompt. Counted are the tokens of both sides of each pair, padding not.
"""

import tempfile
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
)
from benchmarks.shapes import reward_model as new_reward_model
from benchmarks.sides import Side
from benchmarks.stage_work import UNREAD, timed_work
from benchmarks.turns import Turns
from data_contracts.ratings import MARGINS, Domain, Rating
from kernels.model import ModelConfig
from stages import reward_model
from stages.models.pairs import Pair
from stages.runtime.settings import EngineSettings


@dataclass(frozen=True)
class Size:
    """One optimizer step: this many comparisons."""

    model: ModelConfig = SMALL
    max_tokens: int = 512
    global_batch_size: int = 8
    precision: Precision = "fp32"


def pairs(size: Size, num_steps: int) -> list[Pair]:
    """Comparisons of four ratings; prompt and responses of log-normal length."""
    rng = np.random.default_rng(0)
    ratings = list(Rating)
    scale = size.max_tokens / SMALL.max_seq_len
    made = []
    for i in range(num_steps * size.global_batch_size):
        prompt, chosen, rejected = (
            rng.integers(NUM_SPECIAL, size.model.vocab_size, length).tolist()
            for length in _lengths(rng, scale, size.max_tokens)
        )
        sides = ([BOS_ID, *prompt, *response, EOS_ID] for response in (chosen, rejected))
        made.append(Pair(*sides, ratings[i % len(ratings)], None))
    return made


def _lengths(rng: np.random.Generator, scale: float, most: int) -> list[int]:
    """Tokens of prompt, chosen and rejected response: medians of 60, 140 and 140."""
    medians = np.array([60, 140, 140]) * scale
    drawn = np.exp(rng.normal(np.log(medians), 0.6)).round().astype(int)
    room = most - 2 - int(drawn[1:].max())
    return [int(n) for n in drawn.clip(1, [max(room, 1), most - 3, most - 3])]


def ours(turns: Turns, size: Size) -> None:
    """The stage's loop."""
    config = reward_model.Config(
        domain=Domain.helpfulness,
        init_from=UNREAD,
        preferences=(),
        open_preferences=UNREAD,
        global_batch_size=size.global_batch_size,
        micro_batch_size=size.global_batch_size,
        max_tokens=size.max_tokens,
        engine=EngineSettings(precision=size.precision),
    )
    model = new_reward_model(size.model)
    with timed_work(turns) as work:
        reward_model.train(config, model, pairs(size, turns.num_laps), work)


def trainer(turns: Turns, size: Size) -> None:
    """RewardTrainer as it comes."""
    _train(turns, size)


def trainer_by_length(turns: Turns, size: Size) -> None:
    """Batches of pairs of like length: less padding."""
    _train(
        turns,
        size,
        train_sampling_strategy="group_by_length",
        length_column_name="num_tokens",
        remove_unused_columns=False,  # the sampler looks for that column among those left
    )


def _train(turns: Turns, size: Size, **settings: Any) -> None:
    import datasets
    from trl import RewardConfig, RewardTrainer

    from benchmarks.hugging_face import FedTokens, Laps, common_arguments, reward_twin, tokenizer

    rows = [_row(pair) for pair in pairs(size, turns.num_laps)]
    model = reward_twin(new_reward_model(size.model))
    with tempfile.TemporaryDirectory() as folder:
        arguments = RewardConfig(
            **common_arguments(turns, folder, size.precision),
            learning_rate=1e-5,
            max_length=size.max_tokens,
            per_device_train_batch_size=size.global_batch_size,
            gradient_checkpointing=False,
            **settings,
        )
        RewardTrainer(
            model,
            arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer(size.model.vocab_size),
            callbacks=[Laps(turns, FedTokens(model))],
        ).train()


def _row(pair: Pair) -> dict[str, Any]:
    assert pair.rating is not None
    return {
        "chosen_ids": pair.chosen,
        "rejected_ids": pair.rejected,
        "margin": MARGINS["small"][pair.rating],
        "num_tokens": max(len(pair.chosen), len(pair.rejected)),
    }


def floor(size: Size) -> Floor:
    """The transformer on every token; beyond the last attention on one token a side."""
    sides = [side for pair in pairs(size, 4) for side in (pair.chosen, pair.rejected)]
    num_tokens = sum(map(len, sides))
    context = sum(len(s) ** 2 for s in sides) / num_tokens / 2
    flops = 3 * backbone_flops(size.model, context, len(sides) / num_tokens)
    return Floor(flops, "forward and backward; beyond the last attention only last tokens")


BENCHMARK = Benchmark(
    name="reward_model",
    question=__doc__.splitlines()[0],
    unit="tokens/s",
    size=Size(),
    laps_per_round=4,
    sides=(
        Side("ours", ours, "stages.reward_model, micro-batch of 8 pairs, ZeRO-0"),
        Side(
            "RewardTrainer",
            trainer,
            "per-device batch of 8 pairs as by default, a margin column",
            HUGGING_FACE,
            target=1.8,
        ),
        Side(
            "RewardTrainer, by length",
            trainer_by_length,
            "the same with train_sampling_strategy='group_by_length'",
            HUGGING_FACE,
        ),
    ),
    floor=floor,
    on_gpu=Size(MEDIUM, max_tokens=2048, precision="bf16"),
    remarks="Gradient checkpointing, on by default in TRL, is off on both sides.",
)

if __name__ == "__main__":
    main(BENCHMARK)
