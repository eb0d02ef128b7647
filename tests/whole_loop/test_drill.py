"""The drill's core in `make test-all`: `make drill` runs all of its rows."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TABLE = Path(__file__).parent / "drill" / "table.py"


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_the_core_of_the_drill(database: str):
    rows = ("Retry", "cancel in mid-training", "kill -9 of a rank")
    out = subprocess.run(
        [sys.executable, TABLE, "--database", database, "--only", *rows],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stdout + out.stderr[-3000:]
    if "skip" in out.stdout:
        pytest.skip(out.stdout.strip().splitlines()[-1])
    assert out.stdout.count(" pass ") == 3 + len(rows), out.stdout
