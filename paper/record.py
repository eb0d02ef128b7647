"""The findings in MLflow: one run, each number a metric, each verdict a tag, the page its file."""

from collections.abc import Sequence
from pathlib import Path

from data_contracts.store import Store
from flows.environment import Places
from flows.tracking.tracker import Tracker
from paper.finding import Result
from paper.scale import FULL, recipe


def log_to_mlflow(results: Sequence[Result], folder: Path, where: Places) -> None:
    """One run of the experiment "paper". A server that does not answer costs a warning."""
    metrics, tags = {}, {}
    for result in results:
        letter = result.finding.letter
        tags[f"paper.{letter}"] = result.verdict.value
        for name, interval in result.intervals.items():
            for bound in ("value", "low", "high"):
                metrics[f"{letter}/{name}/{bound}"] = getattr(interval, bound)
    tracker = Tracker(recipe(FULL, FULL.seeds[0]), where, Store.open(where.home), warn=print)
    tracker.log_report("findings", metrics, tags, folder)
