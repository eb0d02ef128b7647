"""How long one waits: for the first step of a stage, and for what is not a stage's own work."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from drill.house import RERUN, House
from drill.overhead import Overhead
from drill.row import NotHere, Row, require
from drill.training import rows_of
from whole_loop_home import run_rlhf

_MOST_SECONDS_TO_A_STEP = 15.0
_MOST_OVERHEAD = 0.10
_STAGE = "reward_model-safety"


def to_first_step(ask: Callable[[House], None]) -> Callable[[House], str]:
    """Seconds from the request to the first optimizer step that has ended."""

    def scenario(house: House) -> str:
        work = house.work / house.key(1, _STAGE)
        before = set(work.glob("attempt-*"))
        asked = time.time()
        ask(house)
        (attempt,) = set(work.glob("attempt-*")) - before
        seconds = rows_of(attempt)[0]["time"] - asked
        figures = f"{seconds:.1f} s, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        require(seconds <= _MOST_SECONDS_TO_A_STEP, figures)
        return figures

    return scenario


def from_shell(house: House) -> None:
    out = house.rlhf("stage", _STAGE, "--version", "1", "--force")
    require(out.returncode == 0, out.stderr)


def from_page(house: House) -> None:
    house.prefect.completed(house.prefect.start(RERUN, iteration=1, stage=_STAGE))


def overhead_of_demo(house: House) -> str:
    """Of the demo that `make demo` has run beside the repository; the drill's own is too small."""
    home = Path(os.environ.get("RLHF_HOME", "rlhf_home"))
    found = Overhead.of(home) if home.is_dir() else None
    if found is None:
        raise NotHere(f"no finished demo in {home}: `make demo` first")
    started = time.monotonic()
    again = run_rlhf("run", home=home)
    require(again.returncode == 0, again.stderr)
    found = replace(found, around_seconds=time.monotonic() - started)
    require(found.share <= _MOST_OVERHEAD, found)
    return str(found)


ROWS = (
    Row("rlhf stage to its first step", to_first_step(from_shell)),
    Row("rerun-stage/any to its first step", to_first_step(from_page), is_core=True),
    Row("overhead of a full demo", overhead_of_demo),
)
