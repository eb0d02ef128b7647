"""The whole command with fake stage bodies, in processes of its own: Prefect between them."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import fake_stages
import pytest

pytestmark = [pytest.mark.xdist_group("story"), pytest.mark.timeout(600)]


def demo(home: Path, fail: str) -> subprocess.CompletedProcess[str]:
    root = Path(fake_stages.__file__).parents[2]
    environment = os.environ | {
        "FAKE_FAIL": fail,
        "FAKE_UPDATE_SECONDS": "0.1",
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, fake_stages.__file__, "demo", *fake_stages.SMALL, "--home", str(home)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=480,
    )


def prefect_rows(home: Path, query: str) -> list[tuple]:
    with sqlite3.connect(home / "prefect" / "prefect.db") as database:
        rows = database.execute(query).fetchall()
    database.close()
    return rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for the story below."""
    return tmp_path_factory.mktemp("story") / "home"


def test_a_users_error_then_a_kill_then_a_finished_run(home: Path) -> None:
    wrong = demo(home, fail="v1/sample_pairs=user")
    assert wrong.returncode == 2, wrong.stderr
    assert wrong.stderr.splitlines()[-1] == "Row 17 of data.jsonl.gz has no field text. Add it."
    assert "Traceback" not in wrong.stderr
    assert "+ base/sft" in wrong.stderr

    killed = demo(home, fail="v2/rejection_sampling=kill")
    assert killed.returncode == -9
    assert "= base/sft: reused" in killed.stderr
    assert "+ v1/evaluate" in killed.stderr

    done = demo(home, fail="ppo=slow")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("reused") == 12 + 4
    assert "+ v2/rejection_sampling" in done.stderr
    assert "+ v2/ppo" in done.stderr
    assert "Gold safety of v2 over SFT" in done.stdout
    assert f"Prefect database: {home}/prefect/prefect.db" in done.stdout

    names = prefect_rows(home, "select name, state_type from flow_run order by created")
    assert names[-4:] == [
        ("rlhf-run", "COMPLETED"),
        ("rlhf-base", "COMPLETED"),
        ("rlhf-v1", "COMPLETED"),
        ("rlhf-v2", "COMPLETED"),
    ]
    assert ("rlhf-v1", "FAILED") in names
    states = prefect_rows(home, "select distinct state_name from task_run")
    assert {("Cached",), ("Completed",), ("Failed",)} <= set(states)
    artifacts = prefect_rows(home, "select distinct key from artifact where key <> '' order by key")
    tables = ("rlhf-base", "rlhf-v1", "rlhf-v1-gates", "rlhf-v2", "rlhf-v2-gates")
    assert {*tables, "rlhf-board-sandbox", "rlhf-v2-ppo"} <= {key for (key,) in artifacts}
    (progress,) = prefect_rows(home, "select data, type from artifact where key = 'rlhf-v2-ppo'")
    assert (float(progress[0]), progress[1]) == (100.0, "progress"), "one, updated in place"
    (board,) = prefect_rows(
        home,
        "select data from artifact where key = 'rlhf-board-sandbox' order by created desc limit 1",
    )
    assert "| stage | base | v1 | v2 |" in board[0]
    assert board[0].count("done in") == 6 + 6 + 7
