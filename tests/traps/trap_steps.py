"""One optimizer step of every training stage, each on a small batch of unequal documents."""

import numpy as np
from trap_models import random_ids
from trap_ppo import NO_ARTIFACT

from data_contracts.ratings import Rating, SafetyLabel
from stages import pretrain, reward_model
from stages.models import finetuning
from stages.models.batches import Example
from stages.models.pairs import Pair
from stages.runtime.engine import Engine
from stages.runtime.stage import WorkDir

SEQUENCE_LENGTH = 12


def sequences() -> list[list[Example]]:
    """Seven packed sequences: answers of 1 to 16 tokens, alone or two or three together."""
    sizes = [[(3, 1)], [(2, 16)], [(5, 2), (4, 4)], [(2, 1), (2, 1), (3, 9)], [(9, 2)]]
    sizes += [[(2, 3)], [(6, 5), (1, 7)]]
    return [
        [
            Example(random_ids(p + r, 10 * s + i), [False] * p + [True] * r)
            for i, (p, r) in enumerate(documents)
        ]
        for s, documents in enumerate(sizes)
    ]


def sft_step(engine: Engine, micro_batch_size: int, work: WorkDir) -> dict[str, float]:
    """Of SFT and of rejection sampling's fine-tuning."""
    return {"train/loss": finetuning.train_step(engine, sequences(), micro_batch_size, work)}


def pairs() -> list[Pair]:
    """Seven comparisons of unequal length and strength, with every safety label and none."""
    ratings, labels = [*Rating, None], [*SafetyLabel, None]
    return [
        Pair(
            random_ids(3 + 4 * i % 9, 2 * i),
            random_ids(3 + 7 * i % 11, 2 * i + 1),
            ratings[i % len(ratings)],
            labels[i % len(labels)],
        )
        for i in range(7)
    ]


def reward_config(domain: str, micro_batch_size: int) -> reward_model.Config:
    """The paper's settings on pairs as they are."""
    return reward_model.Config.model_validate(
        {
            "domain": domain,
            "init_from": NO_ARTIFACT,
            "preferences": [NO_ARTIFACT],
            "open_preferences": NO_ARTIFACT,
            "micro_batch_size": micro_batch_size,
        }
    )


def reward_step(engine: Engine, micro_batch_size: int, work: WorkDir) -> dict[str, float]:
    """Of a reward model for safety, with its auxiliary loss."""
    config = reward_config("safety", micro_batch_size)
    return reward_model.train_step(engine, pairs(), config, work)


def pretrain_config(micro_batch_size: int) -> pretrain.Config:
    """Blocks that are cut where documents begin."""
    return pretrain.Config.model_validate(
        {
            "token_shards": NO_ARTIFACT,
            "tokenizer": NO_ARTIFACT,
            "sequence_length": SEQUENCE_LENGTH,
            "global_batch_size": 7,
            "micro_batch_size": micro_batch_size,
            "mask_documents": True,
        }
    )


def pretrain_step(engine: Engine, micro_batch_size: int, work: WorkDir) -> dict[str, float]:
    """Of pretraining."""
    config = pretrain_config(micro_batch_size)
    loss = pretrain.train_step(engine, blocks(), [""] * 7, config, bos_id=1, work=work)
    return {"train/loss": loss}


def blocks() -> list[np.ndarray]:
    """Seven training sequences; a BOS in some of them, at varied places."""
    found = np.array([random_ids(SEQUENCE_LENGTH + 1, i) for i in range(7)])
    for row, column in ((0, 0), (1, 1), (2, 5), (2, 9), (4, 11), (5, 12), (6, 3)):
        found[row, column] = 1
    return list(found)


STEPS = {"sft": sft_step, "reward": reward_step, "pretrain": pretrain_step}
