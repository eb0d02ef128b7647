"""Supervised fine-tuning of the base model on demonstrations (§3.1).

rlhf stage sft --recipe demo
torchrun --nproc-per-node 8 -m stages.sft --config sft.json --home RLHF_HOME
"""

from typing import Any

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.errors import UserError
from stages.models.batches import Example
from stages.models.finetuning import FinetuningSettings, finetune
from stages.models.folders import load_policy, save_policy
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.text.dialogue import Overlong, render_demonstration
from stages.text.tokenizer import Tokenizer

VERSION = "1"


class SftSettings(FinetuningSettings):
    """The paper's settings; `overlong` says what happens to a demonstration beyond the sequence."""

    overlong: Overlong = "error"


class Config(StageConfig, SftSettings):
    """Settings and inputs of one fine-tuning run."""

    init_from: ArtifactRef
    demonstrations: ArtifactRef


def run(config: Config, work: WorkDir) -> StageOutput:
    """Render and pack the demonstrations, train on their answers, save."""
    model, tokenizer = load_policy(work, config.init_from)
    rows = work.table(config.demonstrations, "demonstrations").to_pylist()
    longest = min(config.sequence_length, model.config.max_seq_len)
    examples = rendered(rows, tokenizer, longest, config.overlong)
    engine = finetune(model, examples, config, config.seed, work)
    return StageOutput(
        {"model": save_policy(work, "model", engine, model.config, tokenizer)},
        {
            "num_demonstrations": float(len(examples)),
            "num_dropped": float(len(rows) - len(examples)),
            "num_answer_tokens": float(sum(e.num_loss_tokens for e in examples)),
        },
    )


def rendered(
    rows: list[dict[str, Any]], tokenizer: Tokenizer, longest: int, overlong: Overlong
) -> list[Example]:
    """Tokens and loss mask of every demonstration of at most `longest` tokens.

    Raises UserError, naming the row, when one does not and `overlong` is "error", or when there
    is nothing to train on.
    """
    examples = []
    for row in rows:
        example = render_demonstration(row["messages"], tokenizer)
        if len(example.tokens) <= longest:
            examples.append(Example(example.tokens, example.loss_mask, row["demonstration_id"]))
        elif overlong == "error":
            raise UserError(
                f"Demonstration {row['demonstration_id']} of source {row['source']} has "
                f"{len(example.tokens)} tokens, sequence and context hold {longest}",
                "Shorten it, raise sequence_length (or the model's max_seq_len), or set "
                "overlong=drop",
            )
    if not examples:
        raise UserError(
            f"None of {len(rows)} demonstrations fits into {longest} tokens",
            "Ingest demonstrations, or raise sequence_length",
        )
    return examples


if __name__ == "__main__":
    main(Config, run)
