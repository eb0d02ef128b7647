"""Part of a table: some of its rows, or its prompts filed under another domain.

    python -m paper.stages.choose --config choose.json --home RLHF_HOME

Whatever is chosen for training, held-out rows stay as they are, so that models trained on different
parts are compared on the same ones.
"""

from typing import Any

from pydantic import Field

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.ratings import Domain, Split
from stages.models.batches import seed_from, shuffled
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.runtime.tables import table_output

VERSION = "1"


class Config(StageConfig):
    """Which rows of the training split stay."""

    table: ArtifactRef
    fraction: float = Field(default=1.0, gt=0, le=1)
    """A seeded choice of so many of the training rows; a smaller one is part of a larger one."""
    without_categories: tuple[str, ...] = ()
    """Categories whose training rows are left out."""
    filed_under: Domain | None = None
    """The domain that all training rows are filed under, whatever they are about."""
    held_out_category: str | None = None
    """Keep the held-out rows of this category alone."""


def run(config: Config, work: WorkDir) -> StageOutput:
    """Choose, and write a table of the same kind."""
    name = config.table.kind.split("/")[0]
    rows = work.table(config.table, name).to_pylist()
    chosen = held_out_rows(config, rows) + training_rows(config, rows)
    return StageOutput(
        {"table": table_output(work, "table", name, chosen)}, {"num_rows": float(len(chosen))}
    )


def held_out_rows(config: Config, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Validation and test rows."""
    category = config.held_out_category
    held_out = [row for row in rows if not _is_for_training(row)]
    return [row for row in held_out if category in (None, row["category"])]


def training_rows(config: Config, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The training rows that stay, in a seeded order."""
    candidates = [
        row
        for row in rows
        if _is_for_training(row) and row.get("category") not in config.without_categories
    ]
    order = shuffled(len(candidates), seed_from(config.seed, "choose"))
    chosen = [candidates[i] for i in order[: round(config.fraction * len(candidates))]]
    if config.filed_under is not None:
        chosen = [row | {"domain": config.filed_under.value} for row in chosen]
    return chosen


def _is_for_training(row: dict[str, Any]) -> bool:
    return row.get("split", Split.train) == Split.train


if __name__ == "__main__":
    main(Config, run)
