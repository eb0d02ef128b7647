"""The whole loop against servers that an operator runs: what they show, and what it survives."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from standing_servers import Server, mlflow_server, prefect_server
from whole_loop_home import (
    BASE,
    ITERATION,
    TINY,
    assert_one_paragraph,
    digests,
    run_rlhf,
    running_rlhf,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CHILDREN = {"Base": BASE, "RLHF-V1": ITERATION, "RLHF-V2": [*ITERATION, "ppo"]}


class Served(NamedTuple):
    home: Path
    printed: str
    prefect: Server
    mlflow: Server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Both servers, after a run that was told of them."""
    folder = tmp_path_factory.mktemp("served")
    with prefect_server(folder / "prefect") as prefect, mlflow_server(folder / "mlflow") as mlflow:
        home = folder / "home"
        out = run_rlhf(
            *("run", "--recipe", TINY),
            home=home,
            PREFECT_API_URL=f"{prefect.url}/api",
            MLFLOW_TRACKING_URI=mlflow.url,
        )
        assert out.returncode == 0, out.stderr[-3000:]
        yield Served(home, out.stdout, prefect, mlflow)


def test_the_run_says_where_it_reported_to(served: Served):
    assert f"{served.prefect.url}/api" in served.printed
    assert served.mlflow.url in served.printed
    assert not list(served.home.rglob("*.db")), "no database of its own"


def test_both_pages_are_served(served: Served):
    assert "<html" in served.prefect.get("/").lower()
    assert served.prefect.get("/ui-settings")["api_url"] == f"{served.prefect.url}/api"
    assert "<html" in served.mlflow.get("/").lower()


def test_prefect_shows_a_flow_run_for_each_version_and_a_task_run_for_each_stage(served: Served):
    flow_runs = {run["name"]: run for run in served.prefect.post("/api/flow_runs/filter")}
    assert flow_runs.keys() == {"rlhf-run", "rlhf-base", "rlhf-v1", "rlhf-v2"}
    assert {run["state"]["name"] for run in flow_runs.values()} == {"Completed"}
    for name, stages in (("rlhf-base", BASE), ("rlhf-v2", [*ITERATION, "ppo"])):
        of_this_run = {"flow_runs": {"id": {"any_": [flow_runs[name]["id"]]}}}
        tasks = served.prefect.post("/api/task_runs/filter", **of_this_run)
        assert sorted(task["name"] for task in tasks) == sorted(stages)
        assert {task["state"]["name"] for task in tasks} == {"Completed"}
        # each tag of a task costs a question for a place under its limit: see flows/tasks.py
        assert not any(task["tags"] for task in tasks)


def test_prefect_shows_the_table_of_each_version(served: Served):
    artifacts = served.prefect.post("/api/artifacts/filter")
    boards = {a["key"]: a["data"] for a in artifacts if a["type"] == "table"}
    gates = {"rlhf-v1-gates", "rlhf-v2-gates"}
    assert boards.keys() == {"rlhf-base", "rlhf-v1", "rlhf-v2"} | gates
    assert "rejection_sampling" in boards["rlhf-v2"]


def runs_of(mlflow: Server) -> dict[str, dict[str, Any]]:
    """Every MLflow run of the product by id, with tags and dataset inputs as dictionaries."""
    path = "/api/2.0/mlflow"
    experiment = mlflow.get(f"{path}/experiments/get-by-name?experiment_name=tiny")["experiment"]
    found = mlflow.post(
        f"{path}/runs/search", experiment_ids=[experiment["experiment_id"]], max_results=1000
    )
    runs = {}
    for run in found["runs"]:
        datasets = [i["dataset"] for i in run.get("inputs", {}).get("dataset_inputs", [])]
        runs[run["info"]["run_id"]] = {
            "name": run["info"]["run_name"],
            "status": run["info"]["status"],
            "tags": {tag["key"]: tag["value"] for tag in run["data"]["tags"]},
            "inputs": {dataset["name"]: dataset["digest"] for dataset in datasets},
        }
    return runs


def children_by_parent(runs: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for run in runs.values():
        parent = run["tags"].get("mlflow.parentRunId")
        if parent is not None:
            found.setdefault(runs[parent]["name"], []).append(run["name"])
    return {parent: sorted(names) for parent, names in found.items()}


def assert_complete(mlflow: Server, made: dict[str, dict[str, str]]) -> None:
    """MLflow has every parent, child and model, and as inputs what the store really has."""
    runs = runs_of(mlflow)
    assert children_by_parent(runs) == {name: sorted(c) for name, c in CHILDREN.items()}
    assert {run["status"] for run in runs.values()} == {"FINISHED"}
    (ppo,) = (run for run in runs.values() if run["name"] == "ppo")
    assert ppo["inputs"]["policy"] == made["v2/rejection_sampling"]["model"][:36]
    assert ppo["inputs"]["safety_rm"] == made["v2/reward_model-safety"]["model"][:36]
    models = mlflow.get("/api/2.0/mlflow/registered-models/search")["registered_models"]
    assert {model["name"] for model in models} == {"policy", "helpfulness-rm", "safety-rm"}
    assert {model["latest_versions"][0]["version"] for model in models} == {"2"}


def test_mlflow_lists_parents_children_inputs_and_models(served: Served):
    assert_complete(served.mlflow, digests(served.home))


def test_mlflow_dies_in_the_middle_and_the_next_run_records_what_is_missing(tmp_path: Path):
    home, database = tmp_path / "home", tmp_path / "mlflow"
    with mlflow_server(database) as mlflow:
        arguments = ("run", "--recipe", TINY)
        with running_rlhf(*arguments, home=home, MLFLOW_TRACKING_URI=mlflow.url) as run:
            wait_until((home / "iterations" / "v1" / "sample_pairs.json").exists, "v1", run)
            mlflow.end(signal.SIGKILL)
            assert run.wait() == 0
            assert f"MLflow at {mlflow.url} is not taking records" in run.stderr.read().decode()
    with mlflow_server(database) as mlflow:
        out = run_rlhf("run", "--recipe", TINY, home=home, MLFLOW_TRACKING_URI=mlflow.url)
        assert out.returncode == 0, out.stderr
        assert "running" not in out.stderr
        assert_complete(mlflow, digests(home))


def test_prefect_dies_in_the_middle_and_the_same_command_goes_on(tmp_path: Path):
    home, database = tmp_path / "home", tmp_path / "prefect"
    with prefect_server(database) as prefect:
        api = f"{prefect.url}/api"
        with running_rlhf("run", "--recipe", TINY, home=home, PREFECT_API_URL=api) as run:
            wait_until((home / "iterations" / "v1" / "sample_pairs.json").exists, "v1", run)
            prefect.end(signal.SIGKILL)
            assert run.wait() == 2
            printed = run.stderr.read().decode()
    assert f"The Prefect server at {api} does not answer" in printed.splitlines()[-1]
    assert "Traceback" not in printed
    out = run_rlhf("run", "--recipe", TINY, home=home, PREFECT_API_URL=api)
    assert_one_paragraph(out, f"The Prefect server at {api} does not answer", "Start it")
    with prefect_server(database) as prefect:
        out = run_rlhf("run", "--recipe", TINY, home=home, PREFECT_API_URL=f"{prefect.url}/api")
        assert out.returncode == 0, out.stderr
        assert "= v1/sample_pairs: reused" in out.stderr
        names = [run["name"] for run in prefect.post("/api/flow_runs/filter")]
        assert names.count("rlhf-run") == 2
