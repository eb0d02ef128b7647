"""Findings from the sandbox's text to the page, at sizes where the numbers are noise."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_scale import TINY

from flows.environment import places, prepare
from paper.__main__ import summary, write
from paper.findings import FINDINGS
from paper.runner import run_findings


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_findings_run_and_are_on_the_page(tmp_path):
    where = places(str(tmp_path / "home"))
    prepare(where)
    lines: list[str] = []
    results = run_findings(where.home, TINY, [f.letter for f in FINDINGS], 2, lines.append)
    assert [r.finding.letter for r in results] == [f.letter for f in FINDINGS]
    assert {r.finding.letter: r.failures for r in results if r.failures} == {}
    for result in results:
        assert len(result.effects) == len(result.finding.effects), result.finding.letter
    assert lines[-1].startswith(f"[{len(results)}/{len(results)}]")

    write(results, TINY, 1.0, tmp_path / "report", where)
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert all(f"({f.letter})" in page and f.paper in page for f in FINDINGS)
    assert page.count("<svg ") >= len(results)
    records = json.loads((tmp_path / "report" / "findings.json").read_text("utf-8"))
    assert [r["finding"] for r in records] == [f.letter for f in FINDINGS]
    assert f"{len(results)} reproduced" in summary(results, tmp_path)
    assert (where.local / "mlflow" / "mlflow.db").exists()


@pytest.mark.slow
def test_its_processes_end_with_the_command(tmp_path):
    command = [sys.executable, "-m", "paper", "--quick", "--only", "i", "--home", tmp_path / "home"]
    command += ["--report", tmp_path / "report"]
    begun = tmp_path / "home" / "work"
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) as paper:
        wait_until(lambda: begun.exists() and any(begun.iterdir()))
        workers = [int(pid) for pid in children_of(paper.pid)]
        assert len(workers) >= 2
        paper.terminate()
        paper.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)
