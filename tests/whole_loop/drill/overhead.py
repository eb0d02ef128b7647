"""What a whole run costs beside its stages, from the home that it has left.

Between the first stage's start and the last one's commit everything that no stage's body takes is
orchestration; before and after, it is what the same command takes when all is reused.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from data_contracts.store import Store


@dataclass(frozen=True)
class Overhead:
    """Of a run in one go."""

    wall_seconds: float
    """From the first stage's start to the last one's commit."""
    stage_seconds: float
    """In the bodies of all stages."""
    around_seconds: float = 0.0
    """Of the command when it has nothing to make: start, servers, tasks, report."""

    @classmethod
    def of(cls, home: Path) -> "Overhead | None":
        """The overhead without `around_seconds`; None unless every stage was run once, in a row."""
        store = Store.open(str(home))
        keys = list(store.finished_keys())
        attempts = [attempt for key in store.work_keys() for attempt in store.attempts(key)]
        manifests = [m for key in keys if (m := store.recorded(key)) is not None]
        if not keys or len(attempts) != len(keys) or len(manifests) != len(keys):
            return None
        begun = min(json.loads((a / "attempt.json").read_text())["started_at"] for a in attempts)
        ended = max((home / "manifests" / f"{key}.json").stat().st_mtime for key in keys)
        return cls(ended - begun, sum(m.seconds for m in manifests))

    @property
    def share(self) -> float:
        """Of the whole run's time, what no stage's body took."""
        return 1 - self.stage_seconds / (self.wall_seconds + self.around_seconds)

    def __str__(self) -> str:
        between = self.wall_seconds - self.stage_seconds
        return (
            f"{self.share:.1%}: {between:.1f} s between stages and {self.around_seconds:.1f} s "
            f"around them, beside {self.stage_seconds:.0f} s in stages"
        )
