"""Distillation: a smaller model is fine-tuned on the larger one's best samples (§3.2.3).

    rlhf stage distillation --recipe small --version 1
    torchrun --nproc-per-node 8 -m stages.distillation --config student.json --home RLHF_HOME

Rejection sampling was done with the 70B model alone; the smaller ones learn from what it chose.
The bag is the version's own best samples, with the earlier versions' where the recipe keeps them.
"""

from typing import Any

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.errors import UserError
from stages.models.best_of_k import best_examples
from stages.models.finetuning import FinetuningSettings, finetune
from stages.models.folders import load_policy, save_policy
from stages.runtime.stage import StageOutput, WorkDir, main

VERSION = "1"


class DistillationSettings(FinetuningSettings):
    """As SFT's: the paper fine-tunes in the same way (§3.2.3)."""


class Config(StageConfig, DistillationSettings):
    """Settings and inputs of one student of one version."""

    init_from: ArtifactRef
    """The smaller model."""
    samples: tuple[ArtifactRef, ...]
    """Scored samples of the larger model, one artifact for each version in the bag."""


def run(config: Config, work: WorkDir) -> StageOutput:
    """Take the best samples, fine-tune the smaller model on them, save."""
    student, tokenizer = load_policy(work, config.init_from)
    best = best_samples(config, work)
    longest = min(config.sequence_length, student.config.max_seq_len)
    examples = best_examples(best, tokenizer, longest)
    if not examples:
        raise UserError(
            f"None of {len(best)} best samples fits into {longest} tokens",
            "Raise sequence_length, or sample for more prompts",
        )
    engine = finetune(student, examples, config, config.seed, work)
    return StageOutput(
        {"model": save_policy(work, "model", engine, student.config, tokenizer)},
        {
            "num_best": float(len(best)),
            "num_overlong": float(len(best) - len(examples)),
            "num_parameters": float(student.config.num_parameters()),
        },
    )


def best_samples(config: Config, work: WorkDir) -> list[dict[str, Any]]:
    """The best answers of every version in the bag."""
    rows = [r for ref in config.samples for r in work.table(ref, "scored_samples").to_pylist()]
    return [row for row in rows if row["best"]]


if __name__ == "__main__":
    main(Config, run)
