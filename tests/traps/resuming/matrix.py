"""The resume matrix: every stage that trains, killed with SIGKILL in every way.

    python tests/traps/resuming/matrix.py          (`make resume`)

A cell says "bitwise" when model, optimizer, random generators, controllers, counters and metrics
end equal, to the last bit, to those of a run without a break; and how far the losses are apart
where the number of ranks changed on the way. The exit status is 1 when a cell fails.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TRAPS = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(TRAPS), str(TRAPS.parents[1])]

from resuming.jobs import Job, Kill  # noqa: E402 - after the path
from resuming.world import World  # noqa: E402

STAGES = ("pretrain", "sft", "reward_model", "ppo")
LOSSES = ("train/loss", "ppo/policy_loss", "ppo/value_loss")
MOST_DIFFERENCE = 1e-3
"""Between losses, where the number of ranks changed on the way."""


@dataclass(frozen=True)
class Leg:
    """One of the runs that together finish a stage: all but the last are killed."""

    zero_stage: int = 0
    num_ranks: int = 1
    kill: Kill | None = None


def resumed_alike(kill: Kill, zero_stage: int = 0, num_ranks: int = 1) -> tuple[Leg, ...]:
    return (Leg(zero_stage, num_ranks, kill), Leg(zero_stage, num_ranks))


COLUMNS: dict[str, tuple[Leg, ...]] = {
    "one process": resumed_alike(Kill(5)),
    "over an epoch": resumed_alike(Kill(3)),
    "mid-accumulation": resumed_alike(Kill(3, 1)),
    "while saving": resumed_alike(Kill(4, in_save=True)),
    "ZeRO-1 x 2": resumed_alike(Kill(3, 1), 1, 2),
    "ZeRO-2 x 2": resumed_alike(Kill(3, 1), 2, 2),
    "ZeRO-3 x 2": resumed_alike(Kill(3, 1), 3, 2),
    "2 -> 1 -> 2": (Leg(2, 2, Kill(3)), Leg(0, 1, Kill(5, 1)), Leg(3, 2)),
}
ONE_PROCESS = ("one process", "over an epoch", "mid-accumulation", "while saving")


@dataclass(frozen=True)
class Cell:
    """What came of one stage killed in one way."""

    text: str
    holds: bool


class Matrix:
    """Runs stages below a folder, each against one run without a break."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._home = folder / "inputs"
        self._configs = World(self._home).configs()

    def cells(self, stages: Sequence[str], columns: Sequence[str]) -> dict[tuple[str, str], Cell]:
        """The asked-for part of the matrix, by (stage, column)."""
        wanted = [(stage, column) for stage in stages for column in columns]
        straight = {(stage, *_setting(COLUMNS[column][0])) for stage, column in wanted}
        jobs = [self._job(stage, Leg(*setting), "straight") for stage, *setting in sorted(straight)]
        for stage, column in wanted:
            jobs += [self._job(stage, leg, column) for leg in COLUMNS[column]]
        run_jobs(jobs, self._folder)
        return {key: self._judge(*key) for key in wanted}

    def report(self, stage: str, column: str) -> dict[str, Any]:
        """What the last run of a cell ended with; or, for "straight", a run without a break."""
        leg = Leg() if column == "straight" else COLUMNS[column][-1]
        return json.loads(self._report(stage, leg, column).read_text())

    def _job(self, stage: str, leg: Leg, column: str) -> Job:
        report = self._report(stage, leg, column)
        # Killed runs and those that resume them share a home, whatever their number of ranks.
        home = report.with_suffix("") if column == "straight" else self._folder / stage / column
        if not home.exists():
            shutil.copytree(self._home, home)
        config = self._configs[stage].model_dump(mode="json")
        config["engine"]["zero_stage"] = leg.zero_stage
        return Job(stage, str(home), config, leg.num_ranks, leg.kill, str(report))

    def _report(self, stage: str, leg: Leg, column: str) -> Path:
        zero_stage, num_ranks = _setting(leg)
        return self._folder / stage / f"{column} {zero_stage}x{num_ranks}.json"

    def _judge(self, stage: str, column: str) -> Cell:
        first, *others = COLUMNS[column]
        straight = json.loads(self._report(stage, first, "straight").read_text())
        resumed = self.report(stage, column)
        if resumed["resumed_after"] == [0]:
            return Cell("FAILS: did not resume", holds=False)
        if any(_setting(leg) != _setting(first) for leg in others):
            difference = largest_difference(straight["metrics"], resumed["metrics"])
            text = f"max |dloss| = {difference:.1e}"
            holds = difference <= MOST_DIFFERENCE
            return Cell(text if holds else f"FAILS: {text}", holds)
        parts = ("outputs", "checkpoint", "metrics")
        wrong = [part for part in parts if resumed[part] != straight[part]]
        return Cell(f"FAILS: other {', '.join(wrong)}" if wrong else "bitwise", not wrong)


def _setting(leg: Leg) -> tuple[int, int]:
    return leg.zero_stage, leg.num_ranks


def largest_difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Between the losses of two runs; infinite when their rows are not for the same steps."""
    if [row["step"] for row in one] != [row["step"] for row in other]:
        return float("inf")
    pairs = zip(one, other, strict=True)
    return max(abs(a[name] - b[name]) for a, b in pairs for name in LOSSES if name in a)


def run_jobs(jobs: Sequence[Job], folder: Path) -> None:
    """Run all jobs, one after the other, in forks of one process."""
    path = folder / "jobs.json"
    path.write_text(json.dumps([asdict(job) for job in jobs]))
    here = [str(TRAPS), str(TRAPS.parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-m", "resuming.runner", str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(here), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-4000:])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cells = Matrix(Path(folder)).cells(STAGES, tuple(COLUMNS))
    width = max(len(cell.text) for cell in cells.values()) + 2
    print(" " * 14 + "".join(column.ljust(width) for column in COLUMNS))
    for stage in STAGES:
        texts = (cells[stage, column].text for column in COLUMNS)
        print(stage.ljust(14) + "".join(text.ljust(width) for text in texts))
    sys.exit(not all(cell.holds for cell in cells.values()))


if __name__ == "__main__":
    main()
