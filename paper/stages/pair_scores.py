"""What a reward model says of both sides of every held-out pair.

    python -m paper.stages.pair_scores --config pairs.json --home RLHF_HOME

`reward_model` reports accuracies; comparing two models pair by pair needs the scores themselves.
"""

import json
from pathlib import Path
from typing import Any

from data_contracts.artifacts import ArtifactRef
from data_contracts.base import StageConfig
from data_contracts.ratings import Split
from stages.models.folders import load_scorer
from stages.models.pairs import render_pairs
from stages.models.scoring import score_sequences
from stages.runtime.engine import EngineSettings, frozen
from stages.runtime.stage import StageOutput, WorkDir, main
from stages.text.tokenizer import Tokenizer

VERSION = "2"
FILE = "pairs.json"


class Config(StageConfig):
    """A reward model and the tables whose test rows it reads."""

    reward_model: ArtifactRef
    preferences: tuple[ArtifactRef, ...]
    max_tokens: int = 128


def run(config: Config, work: WorkDir) -> StageOutput:
    """Score every test pair; one record for each, in the order of the tables."""
    tokenizer = Tokenizer.load(work.input(config.reward_model))
    model = frozen(load_scorer(work, config.reward_model), EngineSettings(), work.rank)
    rows = [
        row
        for ref in config.preferences
        for row in work.table(ref, "preferences").to_pylist()
        if row["split"] == Split.test
    ]
    by_id = {row["preference_id"]: row for row in rows}
    pairs = render_pairs(list(by_id.values()), tokenizer, config.max_tokens, "truncate")
    sides = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    chosen, rejected = score_sequences(model, sides, work.rank).chunk(2)
    records = [
        record(by_id[pair.id], float(a), float(b))
        for pair, a, b in zip(pairs, chosen, rejected, strict=True)
    ]
    folder = work.output("pairs")
    if work.rank.is_main:
        (folder / FILE).write_text(json.dumps(records), encoding="utf-8")
    return StageOutput({"pairs": (folder, "pairs")}, {"num_pairs": float(len(records))})


def record(row: dict[str, Any], chosen: float, rejected: float) -> dict[str, Any]:
    """A pair's own columns beside the two scores."""
    columns = (
        "preference_id",
        "prompt_id",
        "domain",
        "category",
        "rating",
        "safety_label",
        "messages",
        "chosen",
        "rejected",
    )
    return {
        **{name: row[name] for name in columns},
        "chosen_score": chosen,
        "rejected_score": rejected,
    }


def read_pairs(folder: Path) -> list[dict[str, Any]]:
    """The records that this stage wrote."""
    return json.loads((folder / FILE).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(Config, run)
