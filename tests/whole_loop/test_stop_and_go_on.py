"""`rlhf stop` while stages train, inline and on two ranks; the same command then goes on, and the
result is what it would have been."""

import json
import shutil
import time
from pathlib import Path

import pytest
from whole_loop_home import (
    PATIENCE_SECONDS,
    digests,
    mlflow_statuses,
    planned,
    processes_on,
    run_rlhf,
    running_rlhf,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def work_of(home: Path, node: str) -> Path:
    step = next(step for step in planned(home) if str(step.node.id) == node)
    assert step.key is not None
    return home / "work" / step.key


@pytest.mark.parametrize("ranks", [1, 2], ids=["inline", "two-ranks"])
def test_stopped_in_training_and_gone_on(home: Path, tmp_path: Path, ranks: int) -> None:
    copy = Path(shutil.copytree(home, tmp_path / "home"))
    command = ("stage", "pretrain", "--force", "--num-processes", str(ranks))
    work = work_of(copy, "base/pretrain")
    with running_rlhf(*command, home=copy) as process:
        spool = work / "attempt-2" / "metrics.jsonl"
        wait_until(lambda: spool.exists() and spool.stat().st_size, "a step", process)
        asked = time.monotonic()
        stop = run_rlhf("stop", home=copy)
        assert stop.returncode == 0, stop.stderr
        assert f"stopped: process {process.pid}" in stop.stdout
        assert process.wait(PATIENCE_SECONDS) == 130
    print(f"stopped after {time.monotonic() - asked:.1f} s")
    assert not processes_on(copy)
    assert list((work / "checkpoints").glob("step-*/manifest.json"))
    steps = [json.loads(line)["step"] for line in spool.read_text().splitlines()]
    out = run_rlhf(*command, home=copy)
    assert out.returncode == 0, out.stderr
    rows = (work / "attempt-3" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["step"] == steps[-1] + 1  # no step twice, none left out
    if ranks == 1:
        assert digests(copy) == digests(home)
    assert mlflow_statuses(copy) <= {"FINISHED"}
    checked = run_rlhf("fsck", home=copy)
    assert checked.returncode == 0, checked.stdout + checked.stderr
