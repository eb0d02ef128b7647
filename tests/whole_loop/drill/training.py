"""A pretraining on two ranks at work, forced through `rerun-stage/any`, to be interrupted."""

import json
from pathlib import Path
from typing import Any

from drill.api import ENDED
from drill.house import RERUN, House
from drill.row import require


class Training:
    """One flow run that pretrains again what the home has; its end must be the same, bit by bit."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.digests = house.digests(0)
        self.work = house.work / house.key(0, "pretrain")
        self._earlier = set(self.work.glob("attempt-*"))
        self.run = house.prefect.start(RERUN, iteration=0, stage="pretrain", force=True)

    def await_steps(self) -> None:
        """Return once it is in mid-training, with a checkpoint behind it."""
        self._house.wait_until(lambda: self.checkpoint_step() > 0 and self.steps(), "training")

    def attempts(self) -> list[Path]:
        """Attempt folders of this run so far, in their order."""
        new = set(self.work.glob("attempt-*")) - self._earlier
        return sorted(new, key=lambda path: int(path.name.removeprefix("attempt-")))

    def steps(self) -> list[int]:
        """Steps that the last attempt has reported."""
        return [row["step"] for row in rows_of(self.attempts()[-1])] if self.attempts() else []

    def times(self) -> list[float]:
        """Unix times at which the last attempt's steps ended."""
        return [row["time"] for row in rows_of(self.attempts()[-1])]

    def checkpoint_step(self) -> int:
        """The newest whole checkpoint's."""
        whole = self.work.glob("checkpoints/step-*/manifest.json")
        return max((int(p.parent.name.removeprefix("step-")) for p in whole), default=0)

    def finish(self) -> str:
        """Wait for a good end of the run; what was done again because of the interruption."""
        self._house.prefect.completed(self.run)
        return self.judge()

    def finish_or_retry(self) -> str:
        """Wait for the run's end, and press Retry when it is no good one: either may come, as the
        run's own process could still report its end or could not."""
        found = self._house.prefect.await_state(self.run, *ENDED)
        if found["state_type"] == "COMPLETED":
            return f"went on by itself, {self.judge()}"
        self._house.prefect.retry(self.run)
        return f"{found['state_name']}, Retry, {self.finish()}"

    def judge(self) -> str:
        """Whether the last attempt resumed and gave the same bits; how many steps it made again."""
        told = [rows for attempt in self.attempts() if (rows := rows_of(attempt))]
        require(len(told) > 1, "nothing was interrupted")
        first, last = told[-1][0]["step"], told[-2][-1]["step"]
        require(first > 0, "it began anew")
        require(self._house.digests(0) == self.digests, "another digest than without a break")
        return f"{last + 1 - first} of {last + 1} steps again, same digest"


def rows_of(attempt: Path) -> list[dict[str, Any]]:
    """Metrics that an attempt has written so far, step by step."""
    spool = attempt / "metrics.jsonl"
    lines = spool.read_text().split("\n")[:-1] if spool.is_file() else []
    return [json.loads(line) for line in lines]
