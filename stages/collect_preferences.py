"""Collect one weekly batch of human preferences (§3.2.1).

    rlhf stage collect_preferences --recipe demo --version 1
    python -m stages.collect_preferences --config batch.json --home RLHF_HOME

Three sources, one contract: the sandbox's simulated annotator labels this week's comparisons,
people labelled them on the annotation page, or preferences that were imported from files are cut
into weekly batches.
"""

from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import Contract, StageConfig
from data_contracts.errors import UserError
from data_contracts.parquet import read_table
from data_contracts.ratings import Domain, Split
from data_contracts.splits import opening, split_of
from data_contracts.tables import PREFERENCES
from stages.importers.user_file import UserFile
from stages.models.batches import shuffled
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.runtime.tables import table_output
from stages.sandbox.annotator import AnnotatorSettings, annotate

VERSION = "1"


class CollectPreferencesSettings(Contract):
    """Where the labels come from and how much of them is held out."""

    method: Literal["simulated", "annotations", "imported"] = "imported"
    annotator: AnnotatorSettings = AnnotatorSettings()
    """The simulated annotator's noise and grades (method simulated)."""
    num_batches: int = Field(default=5, gt=0)
    """Weekly batches that an import is cut into (method imported)."""
    deliveries: Path | None = Field(default=None, json_schema_extra={"in_key": False})
    """Folder into which `rlhf annotations export` writes vN.parquet (method annotations)."""
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts held out for testing; an import carries its split."""

    @model_validator(mode="after")
    def _has_deliveries(self) -> "CollectPreferencesSettings":
        if self.method == "annotations" and self.deliveries is None:
            raise ValueError(
                "method annotations needs deliveries, the folder of `rlhf annotations export`"
            )
        return self


class Config(StageConfig, CollectPreferencesSettings):
    """Settings and inputs of one weekly batch."""

    batch: int = Field(gt=0)
    comparisons: ArtifactRef | None = None
    delivery: UserFile | None = None
    """What was labelled on the annotation page (method annotations)."""
    imported: ArtifactRef | None = None

    @model_validator(mode="after")
    def _has_its_input(self) -> "Config":
        given = {
            "simulated": self.comparisons is not None,
            "annotations": self.delivery is not None,
            "imported": self.imported is not None,
        }
        if given != {name: name == self.method for name in given}:
            raise ValueError(
                "method simulated needs comparisons, annotations a delivery, imported an import, "
                "and none of them another one's"
            )
        return self


def run(config: Config, work: WorkDir) -> StageOutput:
    """Label or cut, split by prompt, write, and report the batch's make-up (Tables 6 and 26)."""
    if config.comparisons is not None:
        rows = simulate(config, work.table(config.comparisons, "comparisons").to_pylist())
    elif config.delivery is not None:
        rows = delivered(config, read_table(config.delivery.checked_path(), PREFERENCES))
    else:
        assert config.imported is not None
        rows = cut(config, work.table(config.imported, "preferences")).to_pylist()
    if not rows:
        raise UserError(
            f"Weekly batch {config.batch} is empty",
            "Label or import more preferences, or lower collect_preferences.num_batches",
        )
    output = table_output(work, "preferences", "preferences", rows)
    return StageOutput({"preferences": output}, statistics(rows))


def simulate(config: Config, comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Labels of the sandbox's annotators, one row for each comparison that got one."""
    rows = []
    for domain in Domain:
        of_domain = [row for row in comparisons if row["domain"] == domain]
        for label in annotate(of_domain, domain, config.annotator, config.seed):
            rows.append(preference(label, config))
    return rows


def preference(labelled: dict[str, Any], config: Config) -> dict[str, Any]:
    """A row of the preferences table from a labelled comparison."""
    return {
        "preference_id": f"{labelled['comparison_id']}-{labelled['annotator']}",
        "prompt_id": labelled["prompt_id"],
        "domain": labelled["domain"],
        "source": "simulated",
        "batch": config.batch,
        "split": _split(labelled["messages"], config),
        "annotator": labelled["annotator"],
        "category": labelled["category"],
        "messages": labelled["messages"],
        "chosen": labelled["chosen"],
        "rejected": labelled["rejected"],
        "rating": labelled["rating"],
        "safety_label": labelled["safety_label"],
    }


def _split(messages: list[dict[str, Any]], config: Config) -> Split:
    return split_of(opening(messages), config.test_fraction, salt="preferences")


def delivered(config: Config, delivery: pa.Table) -> list[dict[str, Any]]:
    """Labels of the annotation page, held out by prompt as everywhere.

    Raises UserError when the file is another week's.
    """
    rows = delivery.to_pylist()
    if any(row["batch"] != config.batch for row in rows):
        raise UserError(
            f"The delivery for weekly batch {config.batch} holds rows of another batch",
            f"Write it with `rlhf annotations export --week {config.batch}`",
        )
    return [row | {"split": _split(row["messages"], config)} for row in rows]


def cut(config: Config, imported: pa.Table) -> pa.Table:
    """Batch `config.batch` of an import, prompts dealt out over the weeks in a seeded order.

    Rows that share a prompt stay in one week. Raises UserError when there is no such week.
    """
    if config.batch > config.num_batches:
        raise UserError(
            f"The import is cut into {config.num_batches} weekly batches, there is no batch "
            f"{config.batch}",
            "Raise collect_preferences.num_batches, or run fewer versions",
        )
    prompts = sorted(set(imported["prompt_id"].to_pylist()))
    order = shuffled(len(prompts), config.seed)
    ours = [prompts[i] for i in order[config.batch - 1 :: config.num_batches]]
    rows = imported.filter(pc.field("prompt_id").isin(ours))
    batch = pa.array([config.batch] * rows.num_rows, pa.int32())
    return rows.set_column(rows.schema.get_field_index("batch"), "batch", batch)


def statistics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Comparisons, turns, and the shares of ratings and safety labels of one batch."""
    counts = {"num_comparisons": float(len(rows))}
    turns = sum(said["role"] == "user" for row in rows for said in row["messages"])
    counts["mean_turns"] = turns / len(rows)  # as Table 6 counts: one for a single question
    for row in rows:
        for name in (f"domain/{row['domain']}", f"split/{row['split']}"):
            counts[name] = counts.get(name, 0.0) + 1
        for column in ("rating", "safety_label"):
            if row[column] is not None:
                name = f"{column}/{row[column]}"
                counts[name] = counts.get(name, 0.0) + 1
    return counts


if __name__ == "__main__":
    main(Config, run)
