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
from collections.abc import Iterable, Sequence
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

    def cells(
        self, stages: Sequence[str], columns: Sequence[str], bug: str = ""
    ) -> dict[tuple[str, str], Cell]:
        """The asked-for part of the matrix, by (stage, column); `bug` is one to plant."""
        wanted = [(stage, column) for stage in stages for column in columns]
        jobs = [job for stage, column in wanted for job in self._jobs(stage, column, bug)]
        once = dict.fromkeys(jobs)  # a straight run may serve several columns
        run_jobs([job for job in once if not Path(job.report).exists()], self._folder)
        return {key: self._judge(*key, bug) for key in wanted}

    def report(self, stage: str, name: str) -> dict[str, Any]:
        """What a run ended with: that of a column, or a straight one."""
        return json.loads((self._folder / stage / f"{name}.json").read_text())

    def _jobs(self, stage: str, column: str, bug: str) -> list[Job]:
        legs = COLUMNS[column]
        straight = Leg(legs[0].zero_stage, legs[0].num_ranks)
        return [
            self._job(stage, straight_name(column, bug), straight, bug),
            *(self._job(stage, column + bug, leg, bug) for leg in legs),
        ]

    def _job(self, stage: str, name: str, leg: Leg, bug: str) -> Job:
        home = self._folder / stage / name  # of killed runs and of those that resume them
        if not home.exists():
            shutil.copytree(self._home, home)
        config = self._configs[stage].model_dump(mode="json")
        config["engine"]["zero_stage"] = leg.zero_stage
        return Job(
            stage, str(home), json.dumps(config), leg.num_ranks, leg.kill, f"{home}.json", bug
        )

    def _judge(self, stage: str, column: str, bug: str) -> Cell:
        straight = self.report(stage, straight_name(column, bug))
        resumed = self.report(stage, column + bug)
        if resumed["resumed_after"] == [0]:
            return Cell("FAILS: did not resume", holds=False)
        if len({(leg.zero_stage, leg.num_ranks) for leg in COLUMNS[column]}) > 1:
            difference = largest_difference(straight["metrics"], resumed["metrics"])
            holds = difference <= MOST_DIFFERENCE
            return Cell(f"{'' if holds else 'FAILS: '}max |dloss| = {difference:.1e}", holds)
        parts = ("outputs", "checkpoint", "metrics")
        wrong = [part for part in parts if resumed[part] != straight[part]]
        return Cell(f"FAILS: other {', '.join(wrong)}" if wrong else "bitwise", not wrong)


def straight_name(column: str, bug: str = "") -> str:
    """Of the run without a break that a column is compared with; columns share it."""
    first = COLUMNS[column][0]
    return f"straight {first.zero_stage}x{first.num_ranks}{bug}"


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
    print(_row("", COLUMNS), flush=True)
    holds = True
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder))
        for stage in STAGES:
            cells = matrix.cells([stage], tuple(COLUMNS)).values()
            print(_row(stage, [cell.text for cell in cells]), flush=True)
            holds = holds and all(cell.holds for cell in cells)
    sys.exit(0 if holds else 1)


def _row(first: str, others: Iterable[str]) -> str:
    return first.ljust(14) + "".join(text.ljust(24) for text in others).rstrip()


if __name__ == "__main__":
    main()
