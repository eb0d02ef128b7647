"""`rlhf up` as a team uses it: servers and workers of one home, its deployments, and the end."""

import json
import os
import signal
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from up_servers import SECRET, Up, processes
from whole_loop_home import (
    ITERATION,
    TINY,
    assert_one_paragraph,
    digests,
    processes_on,
    run_rlhf,
    running_rlhf,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A guarded `rlhf up` on a home in which nothing has run, whose labels come from people."""
    home = tmp_path_factory.mktemp("up") / "home"
    servers = Up(home)
    settings = [
        *("--set", "collect_preferences.method=annotations"),
        *("--set", f"collect_preferences.deliveries={home / 'annotation' / 'deliveries'}"),
        # at once past its deadline: only the quorum is waited for
        *("--set", "labelling.days=0.00001", "--set", "labelling.quorum=0.8"),
    ]
    secrets = {"PREFECT_SERVER_API_AUTH_STRING": SECRET}
    arguments = ("up", "--recipe", TINY, *settings, *servers.arguments)
    with running_rlhf(*arguments, home=home, **secrets) as process:
        wait_until(lambda: servers.is_ready(process), "the servers to be ready", process)
        yield servers
        out = run_rlhf("down", home=home)
        assert out.returncode == 0, out.stderr
        assert "have ended" in out.stdout
        assert process.wait(60) == 0
        assert not processes_on(home)


def test_every_server_answers_and_only_with_the_secret(up: Up):
    assert up.call("/health") is True
    for port, path in ((up.ports[1], "/health"), (up.ports[2], "/healthz")):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{up.api}/work_pools/rlhf", timeout=60)
    for pool in ("rlhf", "rlhf-watch"):
        assert up.call(f"/work_pools/{pool}")["status"] == "READY"


def test_the_deployments_are_those_of_the_file(up: Up):
    weekly = up.call("/deployments/name/rlhf-iteration/weekly")
    assert weekly["global_concurrency_limit"]["limit"] == 1
    assert weekly["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    (schedule,) = weekly["schedules"]
    assert schedule["schedule"]["cron"] == "0 3 * * 1"
    stages = up.call("/deployments/name/rerun-stage/any")["parameter_openapi_schema"]
    assert "ppo" in stages["definitions"]["StageName"]["enum"]
    wait_until(
        lambda: up.call(
            "/flow_runs/filter",
            {"deployments": {"id": {"any_": [weekly["id"]]}}},
        ),
        "the schedule to make runs",
    )


def test_a_second_one_is_refused_with_the_pid_of_the_first(up: Up):
    pid = json.loads((up.home / "servers.json").read_text())["pid"]
    out = run_rlhf("up", "--recipe", TINY, *Up(up.home).arguments, home=up.home)
    assert_one_paragraph(out, "up already", f"process {pid}", "rlhf down")


def test_an_iteration_waits_for_its_labels_and_goes_on_by_itself(up: Up):
    first = up.ended(up.start("rlhf-iteration/weekly"))
    assert (first["name"], first["state_name"]) == ("rlhf-v1", "AwaitingLabels"), first["state"]
    assert up.tasks(first["id"])[-1] == "sample_pairs"

    early = up.ended(up.start("watch-annotations/every-15-minutes"))
    assert "v1 has 0 of" in early["state"]["message"]

    page = f"http://127.0.0.1:{up.ports[2]}"
    out = run_rlhf("annotations", "simulate", "--url", page, "--annotators", "2", home=up.home)
    assert out.returncode == 0, out.stderr
    watch = up.ended(up.start("watch-annotations/every-15-minutes"))
    assert watch["state"]["message"].startswith("v1 goes on in"), watch["state"]
    again = up.ended(up.start("watch-annotations/every-15-minutes"))
    runs = up.call("/flow_runs/filter", {})
    (second,) = (run["id"] for run in runs if run["idempotency_key"] == "v1:labelled:1")
    done = up.ended(second)
    assert done["state_name"] == "Completed", done["state"]
    assert up.tasks(done["id"]) == ITERATION
    _assert_mlflow_shows_the_batch(up)
    assert again["state_type"] == "COMPLETED"

    late = [up.start("rlhf-iteration/weekly") for _ in range(2)]
    assert {up.ended(run)["state_name"] for run in late} == {"Skipped"}
    assert "v2/sample_pairs" not in digests(up.home)


def _assert_mlflow_shows_the_batch(up: Up) -> None:
    """What people labelled stands in MLflow, and both reward models trained on it."""
    url = f"http://127.0.0.1:{up.ports[1]}/api/2.0/mlflow"
    experiments = _posted(f"{url}/experiments/search", {"max_results": 100})["experiments"]
    body = {
        "experiment_ids": [found["experiment_id"] for found in experiments],
        "filter": "tags.`rlhf.version` = '1'",
        "max_results": 1000,
    }
    metrics = {}
    for run in _posted(f"{url}/runs/search", body)["runs"]:
        metrics[run["info"]["run_name"]] = {
            metric["key"].removeprefix("final/"): metric["value"]
            for metric in run["data"].get("metrics", [])
        }
    (delivery,) = (up.home / "annotation" / "deliveries").glob("*.parquet")
    rows = pq.read_table(delivery).to_pylist()
    batch = next(m for name, m in metrics.items() if "collect_preferences" in name)
    assert batch["num_comparisons"] == len(rows) > 0
    assert batch["mean_turns"] >= 1
    for column in ("rating", "safety_label"):
        for kind, count in Counter(row[column] for row in rows if row[column]).items():
            assert batch[f"{column}/{kind}"] == count
    assert sum("reward_model" in name for name in metrics) == 2


def _posted(url: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_one_stage_again_runs_that_stage_alone(up: Up):
    before = digests(up.home)
    run = up.ended(
        up.start("rerun-stage/any", iteration=1, stage="reward_model-safety", cascade=True)
    )
    assert (run["name"], run["state_name"]) == ("rlhf-v1-reward_model-safety", "Completed")
    assert up.tasks(run["id"]) == ["reward_model-safety"]
    assert digests(up.home) == before


def test_a_killed_worker_is_started_again(up: Up):
    (worker,) = processes(up.home, "prefect worker start --pool rlhf-watch")
    os.kill(worker, signal.SIGKILL)
    wait_until(
        lambda: processes(up.home, "prefect worker start --pool rlhf-watch") not in ([], [worker]),
        "another worker",
    )
    assert up.ended(up.start("watch-annotations/every-15-minutes"))["state_type"] == "COMPLETED"


def test_after_ctrl_c_no_process_is_left(tmp_path: Path):
    home = tmp_path / "home"
    servers = Up(home)
    with running_rlhf("up", "--recipe", TINY, *servers.arguments, home=home) as process:
        wait_until(lambda: len(processes_on(home)) > 3, "programs to start", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        assert not processes_on(home)
    assert "No servers" in run_rlhf("down", home=home).stdout


def test_after_a_kill_no_process_is_left_and_the_next_one_goes_on(tmp_path: Path):
    home = tmp_path / "home"
    servers = Up(home)
    arguments = ("up", "--recipe", TINY, *servers.arguments)
    with running_rlhf(*arguments, home=home) as process:
        wait_until(lambda: servers.is_ready(process), "the servers to be ready", process)
        run = servers.start("rlhf-iteration/weekly")
        wait_until(lambda: (home / "iterations" / "base" / "ingest.json").exists(), "a stage")
        process.kill()
        process.wait(60)
        wait_until(lambda: not processes_on(home), "its processes to end")
    with running_rlhf(*arguments, home=home) as process:
        wait_until(lambda: servers.is_ready(process), "the servers to be ready", process)
        done = servers.ended(run)
        assert (done["name"], done["state_name"]) == ("rlhf-v1", "Completed"), done["state"]
        assert "v1/evaluate" in digests(home)
        champions = _champions(servers)
        verdict = json.loads((home / "gates" / "v1.json").read_text())
        failed = {gate["model"] for gate in verdict["gates"] if not gate["passed"]}
        assert champions == {"policy", "helpfulness-rm", "safety-rm"} - failed


def _champions(up: Up) -> set[str]:
    """Registered models of MLflow's that have a champion."""
    url = f"http://127.0.0.1:{up.ports[1]}/api/2.0/mlflow/registered-models/search"
    with urllib.request.urlopen(url, timeout=60) as answer:
        models = json.load(answer)["registered_models"]
    return {m["name"] for m in models if "champion" in [a["alias"] for a in m.get("aliases", ())]}
