"""Stages on a pool of their own, and a person who is asked about gates: on `rlhf up`."""

import contextlib
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from up_servers import Up
from whole_loop_home import TINY, digests, processes_on, run_rlhf, running_rlhf, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SETTINGS = [
    *("--set", "launch.pools.reward_model=gpu"),
    *("--set", "helpfulness_rm.num_epochs=8"),  # long enough to be killed in the middle
    *("--set", "safety_rm.num_epochs=8"),
    # hardly fine-tuned, the base model stays what it is: no match for the chat model
    *("--set", "rejection_sampling.finetuning.learning_rate=1e-12"),
]
HELPFULNESS, SAFETY = "rlhf-v1-reward_model-helpfulness", "rlhf-v1-reward_model-safety"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    home = tmp_path_factory.mktemp("pools") / "home"
    servers = Up(home)
    arguments = ("up", "--recipe", TINY, *SETTINGS, *servers.arguments)
    with running_rlhf(*arguments, home=home) as process:
        wait_until(lambda: servers.is_ready(process), "the servers to be ready", process)
        yield servers
        assert run_rlhf("down", home=home).returncode == 0
        assert process.wait(60) == 0
        assert not processes_on(home)


def stage_runs(up: Up, name: str) -> list[dict[str, Any]]:
    """Runs of a stage on the pool, by the name of the run."""
    deployment = up.call("/deployments/name/run-stage/gpu")["id"]
    return up.runs(deployments={"id": {"any_": [deployment]}}, flow_runs={"name": {"any_": [name]}})


def is_running(up: Up, name: str) -> bool:
    return [run["state_type"] for run in stage_runs(up, name)] == ["RUNNING"]


def process_of(up: Up, run: str) -> int:
    """The process that executes a flow run."""
    mark = f"PREFECT__FLOW_RUN_ID={run}".encode()
    found = []
    for pid in processes_on(up.home):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return min(found)


def test_a_killed_iteration_finds_its_stage_again(up: Up):
    run = up.start("rlhf-iteration/weekly")
    wait_until(lambda: is_running(up, HELPFULNESS), "the stage on its pool", pause=0.5)
    os.kill(process_of(up, run), signal.SIGKILL)
    assert up.ended(run)["state_type"] == "CRASHED"
    time.sleep(30)  # Prefect's worker tells of a killed process twice: see drill/api.py, retry
    retry = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    up.call(f"/flow_runs/{run}/set_state", retry)
    wait_until(
        lambda: up.call(f"/flow_runs/{run}")["state_type"] == "RUNNING", "the retry", pause=0.5
    )
    done = up.ended(run)
    assert (done["name"], done["state_type"]) == ("rlhf-v1", "COMPLETED"), done["state"]
    for name in (HELPFULNESS, SAFETY):
        (only,) = stage_runs(up, name)
        assert (only["state_type"], only["run_count"]) == ("COMPLETED", 1), only["state"]
        assert only["work_pool_name"] == "gpu"
    assert {"v1/evaluate", "v1/reward_model-safety"} <= digests(up.home).keys()


def test_a_person_is_asked_about_a_gate_and_decides(up: Up):
    named = {"name": {"any_": ["rlhf-v1-gates"]}}
    wait_until(lambda: up.runs(flow_runs=named), "its flow run", pause=0.5)
    (asked,) = up.runs(flow_runs=named)
    run = asked["id"]
    wait_until(
        lambda: up.call(f"/flow_runs/{run}")["state_name"] == "Suspended",
        "the form",
        pause=0.5,
    )
    assert "policy" not in champions(up)
    form = up.call(f"/flow_runs/{run}/input/suspended-rlhf-v1-gates-schema")
    assert {"policy", "helpfulness_rm", "safety_rm", "by", "reason"} == form["properties"].keys()
    resume = f"/flow_runs/{run}/resume"
    refused = up.call(resume, {"run_input": {"policy": True, "by": "Lea", "reason": ""}})
    assert refused["status"] == "REJECT"
    up.call(resume, {"run_input": {"policy": True, "by": "Lea", "reason": "a demo"}})
    done = up.ended(run)
    assert done["state"]["message"] == "Champions by Lea: policy"
    override = json.loads((up.home / "gates" / "v1-override.json").read_text())
    policy = digests(up.home)["v1/rejection_sampling"]["model"]
    assert (override["promoted"], override["by"]) == ({"policy": policy}, "Lea")
    assert champions(up)["policy"] == "Lea: a demo"


def champions(up: Up) -> dict[str, str]:
    """Registered models that have a champion, each with why it is."""
    url = f"http://127.0.0.1:{up.ports[1]}/api/2.0/mlflow/"
    with urllib.request.urlopen(f"{url}registered-models/search", timeout=60) as answer:
        models = json.load(answer)["registered_models"]
    found = {}
    for model in models:
        for alias in model.get("aliases", ()):
            query = f"model-versions/get?name={model['name']}&version={alias['version']}"
            with urllib.request.urlopen(f"{url}{query}", timeout=60) as answer:
                tags = json.load(answer)["model_version"]["tags"]
            why = {tag["key"]: tag["value"] for tag in tags}
            found[model["name"]] = why["rlhf.promoted_by"]
    return found


def test_cancelling_an_iteration_cancels_its_stage(up: Up):
    before = digests(up.home)
    run = up.start("rerun-stage/any", iteration=1, stage="reward_model-safety")
    wait_until(
        lambda: [r["state_type"] for r in stage_runs(up, SAFETY)] == ["COMPLETED", "RUNNING"],
        "the stage by force on its pool",
        pause=0.5,
    )
    up.call(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    assert up.ended(run)["state_type"] == "CANCELLED"
    assert up.ended(stage_runs(up, SAFETY)[-1]["id"])["state_type"] == "CANCELLED"
    assert digests(up.home) == before
