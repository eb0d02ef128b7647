"""A stage's own loop under the clock: its WorkDir ends a lap whenever the stage reports a step."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.turns import Turns
from data_contracts.artifacts import ArtifactRef
from data_contracts.store import Store
from stages.runtime.determinism import seed_everything
from stages.runtime.distributed import Rank, process_group
from stages.runtime.heap import keep_freed_memory
from stages.runtime.stage import WorkDir

UNREAD = ArtifactRef(digest="0" * 64, kind="files")
"""For config fields that name what the stage would load and a benchmark hands over in memory."""


class TimedWork(WorkDir):
    """The stage writes its metrics and its progress as ever; each finished step is a lap."""

    def __init__(self, attempt: Path, rank: Rank, store: Store, turns: Turns, unit: str) -> None:
        super().__init__(attempt, rank, store)
        self._turns = turns
        self._unit = unit
        self.metrics: dict[str, float] = {}
        """What the stage tracked last."""

    def track(self, step: int, metrics: dict[str, float]) -> None:
        """Keep the metrics, too."""
        super().track(step, metrics)
        self.metrics = metrics

    def progress(self, done: int, total: int, unit: str, **extra: Any) -> None:
        """End a lap at every step; sampling reports in another unit."""
        super().progress(done, total, unit, **extra)
        if unit == self._unit:
            self._turns.lap(self.amount(extra), **self.facts())

    def amount(self, extra: dict[str, Any]) -> float:
        """Tokens of the step that ended."""
        return extra["tokens"]

    def facts(self) -> dict[str, float]:
        """What to report beside the time."""
        return {"loss": self.metrics["train/loss"]}


@contextmanager
def timed_work(
    turns: Turns, work_type: type[TimedWork] = TimedWork, unit: str = "step"
) -> Iterator[TimedWork]:
    """Set up as `run_stage` does, in a temporary store, and start the clock."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as home:
        store = Store.open(home)
        rank = process_group()
        seed_everything(0)
        keep_freed_memory()
        turns.start()
        yield work_type(store.new_attempt("benchmark"), rank, store, turns, unit)
