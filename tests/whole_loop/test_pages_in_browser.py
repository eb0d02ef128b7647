"""What a person sees of a run on Prefect's and MLflow's pages, in a real Chromium.

With RLHF_PICTURES=docs/operations the pictures of the documentation are taken anew.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from standing_servers import Server, mlflow_server, prefect_server
from whole_loop_home import BASE, ITERATION, PATIENCE_SECONDS, TINY, running_rlhf, wait_until

from flows.progress import PAGE_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SECONDS_IN_MS = 1000


class Visited(NamedTuple):
    """Both servers after a run, and what their pages said while it was at work."""

    prefect: Server
    mlflow: Server
    runs_at_work: str
    progress_at_work: str


class Visitor:
    """A window of Chromium."""

    def __init__(self, browser: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(PATIENCE_SECONDS * SECONDS_IN_MS)

    def read(self, url: str, *expected: str) -> str:
        """The text of a page once it says all of this."""
        self.page.goto(url)
        return self.wait_for(*expected)

    def wait_for(self, *expected: str) -> str:
        """The page's text once it says all of this."""
        self.page.wait_for_function(
            "words => words.every(word => document.body.innerText.includes(word))",
            arg=list(expected),
        )
        return self.page.inner_text("body")

    def take_picture(self, name: str) -> None:
        """Keep what is seen for the documentation, when it is asked for."""
        if folder := os.environ.get("RLHF_PICTURES"):
            self.page.wait_for_timeout(2 * SECONDS_IN_MS)  # for what is still being drawn
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture(scope="module")
def visitor(chromium: Any) -> Visitor:
    """One window for all pages."""
    return Visitor(chromium)


@pytest.fixture(scope="module")
def visited(visitor: Visitor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visited]:
    """A run whose pretraining takes long enough to be looked at."""
    folder = tmp_path_factory.mktemp("visited")
    home = folder / "home"
    with prefect_server(folder / "prefect") as prefect, mlflow_server(folder / "mlflow") as mlflow:
        arguments = ("run", "--recipe", TINY, "--versions", "1")
        at = {"PREFECT_API_URL": f"{prefect.url}/api", "MLFLOW_TRACKING_URI": mlflow.url}
        long = ("--set", "pretrain.num_tokens=200000")
        with running_rlhf(*arguments, *long, home=home, **at) as run:
            wait_until(lambda: _is_pretraining(home), "pretraining", run)
            for expected in ("steps/s", "left"):  # one update more, and its rate is known
                with _held(run):
                    time.sleep(PAGE_SECONDS)  # only what takes so long comes on the page
                wait_until(lambda words=expected: words in _progress(prefect), expected, run, 0.3)
            with _held(run):  # until a person has looked
                runs = visitor.read(f"{prefect.url}/runs", "rlhf-base")
                key = f"{prefect.url}/artifacts/key/rlhf-base-pretrain"
                progress = visitor.read(key, "left", "pretrain")
                visitor.take_picture("prefect-progress")
            assert run.wait(PATIENCE_SECONDS) == 0
        yield Visited(prefect, mlflow, runs, progress)


def _is_pretraining(home: Path) -> bool:
    files = home.glob("work/*/attempt-1/progress.json")
    return any('"step"' in file.read_text() for file in files)


@contextlib.contextmanager
def _held(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The process stands still during the block."""
    process.send_signal(signal.SIGSTOP)
    yield
    process.send_signal(signal.SIGCONT)


def _progress(prefect: Server) -> str:
    """What the progress artifact of pretraining says."""
    made = [a for a in prefect.post("/api/artifacts/filter") if a["type"] == "progress"]
    return " ".join(a["description"] for a in made if a["key"] == "rlhf-base-pretrain")


def test_a_run_at_work_shows_its_name_and_how_far_it_is(visited: Visited):
    assert re.search(r"rlhf-base\s+Running", visited.runs_at_work)
    assert re.search(r"rlhf-run\s+Running", visited.runs_at_work)
    said = re.search(
        r"base/pretrain: ([\d,]+)/([\d,]+) steps, [\d,.]+ steps/s, loss [\d.]+, .*left",
        visited.progress_at_work,
    )
    assert said, visited.progress_at_work
    done, total = (int(number.replace(",", "")) for number in said.groups())
    assert 0 < done < total


def test_prefects_page_lists_the_runs_and_the_stages_of_each(visited: Visited, visitor: Visitor):
    listed = visitor.read(f"{visited.prefect.url}/runs", "rlhf-run", "rlhf-base", "rlhf-v1")
    assert len(re.findall(r"rlhf-(?:run|base|v1)\s+Completed", listed)) == 3
    visitor.take_picture("prefect-runs")
    ids = {run["name"]: run["id"] for run in visited.prefect.post("/api/flow_runs/filter")}
    for name, stages in (("rlhf-base", BASE), ("rlhf-v1", ITERATION)):
        visitor.read(f"{visited.prefect.url}/runs/flow-run/{ids[name]}", name, "Task Runs")
        visitor.page.get_by_text("Task Runs", exact=True).first.click()
        visitor.wait_for(*stages, f"({len(stages)} Completed)")
    visitor.take_picture("prefect-stages")


def test_prefects_page_shows_the_board_and_the_gates(visited: Visited, visitor: Visitor):
    (board,) = (
        a["latest_id"]  # "id" is that of the row of all artifacts with this key, which has no page
        for a in visited.prefect.post("/api/artifacts/latest/filter")
        if a["key"] == "rlhf-board-tiny"
    )
    text = visitor.read(f"{visited.prefect.url}/artifacts/artifact/{board}", "reward_model-safety")
    assert re.search(r"stage\s+base\s+v1", text)
    assert text.count("done in") == len(BASE) + len(ITERATION)
    visitor.take_picture("prefect-board")
    gates = visitor.read(f"{visited.prefect.url}/artifacts/key/rlhf-v1-gates", "Gates of v1")
    assert "champions are" in gates


def test_mlflows_page_lists_versions_stages_and_models(visited: Visited, visitor: Visitor):
    path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=tiny"
    experiment = visited.mlflow.get(path)["experiment"]["experiment_id"]
    runs = f"{visited.mlflow.url}/#/experiments/{experiment}/runs"
    visitor.read(runs, "RLHF-V1", "Base", f"{2 + len(BASE) + len(ITERATION)} matching runs")
    for parent in ("RLHF-V1", "Base"):
        row = visitor.page.get_by_role("gridcell").filter(has_text=parent).first
        row.get_by_role("button").first.click()  # unfolds it
    visitor.wait_for("reward_model-helpfulness", "rejection_sampling", "pretrain")
    visitor.take_picture("mlflow-runs")
    visitor.read(f"{visited.mlflow.url}/#/models", "policy", "helpfulness-rm", "safety-rm")
    visitor.page.keyboard.press("Escape")  # the praise of a new page, shown once
    visitor.take_picture("mlflow-models")
