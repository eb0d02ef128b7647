import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

import pytest
from fake_stages import walk_all

from flows.cascade import rerun
from flows.environment import prepare
from flows.graph import nodes
from flows.planner import head_manifest, plan
from flows.recipe import Recipe, load_recipe
from flows.runner import Walk, find_nodes
from flows.tracking import tracker as tracking

NewWalk = Callable[..., Walk]


@pytest.fixture
def small() -> Recipe:
    """One version: enough to see parents, children and models."""
    return load_recipe("demo", ["num_versions=1"])


def client_of(walk: Walk):
    prepare(walk.where)
    from mlflow import MlflowClient

    return MlflowClient(walk.where.mlflow, registry_uri=walk.where.mlflow)


def all_runs(walk: Walk) -> dict[str, list]:
    client = client_of(walk)
    experiment = client.get_experiment_by_name("sandbox")
    assert experiment is not None
    found: dict[str, list] = {}
    for run in client.search_runs([experiment.experiment_id]):
        found.setdefault(run.info.run_name, []).append(run)
    return found


def ended_at(walk: Walk, node: str) -> float:
    """Unix time of a node's end, by its manifest."""
    (wanted,) = find_nodes(walk.recipe, node, None)
    manifest = head_manifest(wanted.id, walk.store, walk.ledger)
    assert manifest is not None
    return datetime.fromisoformat(manifest.finished_at).timestamp()


def test_parents_children_inputs_params_metrics_and_models(
    new_walk: NewWalk, small: Recipe
) -> None:
    walk = new_walk(small, tracked=True)
    with walk.tracker:
        results = {r.node.id.name: r.manifest for r in walk_all(walk)}
    assert not walk.tracker.broken

    runs = all_runs(walk)
    assert len(runs) == 2 + len(results)
    assert all(len(same) == 1 for same in runs.values())
    parent, child = runs["RLHF-V1"][0], runs["rejection_sampling"][0]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {run[0].info.status for run in runs.values()} == {"FINISHED"}
    assert child.data.params["num_samples"] == "8"
    assert child.data.params["finetuning.learning_rate"] == "0.0005"
    assert "policy.digest" not in child.data.params

    inputs = {i.dataset.name: i.dataset.digest for i in child.inputs.dataset_inputs}
    policy = results["sft"].outputs["model"].digest
    assert inputs["policy"] == policy[:36]
    assert child.data.tags["rlhf.input.policy"] == policy
    assert child.data.metrics["final/num_rows"] == 1.0
    history = client_of(walk).get_metric_history(child.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]

    for name, node in (("policy", "rejection_sampling"), ("safety-rm", "reward_model-safety")):
        (version,) = client_of(walk).search_model_versions(f"name = '{name}'")
        assert version.tags["rlhf.digest"] == results[node].outputs["model"].digest
        assert Path(version.tags["rlhf.path"]).is_dir()


def test_a_stage_begins_without_mlflow_and_a_failed_one_is_there_all_the_same(
    new_walk: NewWalk, small: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = new_walk(small, tracked=True)
    first = nodes(small)[0]
    (step, *_) = plan(small, walk.store, walk.ledger)
    assert step.key is not None
    assert step.config is not None
    before = time.time()
    with suppress(RuntimeError), walk.tracker:
        run = walk.tracker.begin(first, step.key, step.config)
        began = time.time()
        run.flush_sometimes()
        assert not walk.where.mlflow_database.exists()  # not a word to MLflow yet
        time.sleep(1.5)
        raise RuntimeError
    (found,) = all_runs(walk)[first.id.name]
    assert found.info.status == "FAILED"
    assert before - 0.001 <= found.info.start_time / 1000 <= began

    monkeypatch.setattr(tracking, "FIRST_FLUSH_SECONDS", 0.0)
    again = new_walk(small, tracked=True)
    again.tracker.begin(first, step.key, step.config).flush_sometimes()
    (found,) = all_runs(again)[first.id.name]
    assert found.info.status == "RUNNING"


def test_reuse_adds_nothing_a_rerun_resumes_and_a_lost_database_is_made_again(
    new_walk: NewWalk, small: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(tracking, "_PAGE", 3)  # more runs than a page, as after a year
    walk = new_walk(small, tracked=True)
    walk_all(walk)
    before = {name: [r.info.run_id for r in runs] for name, runs in all_runs(walk).items()}
    again = new_walk(small, tracked=True)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", pytest.fail)
        walk_all(again)
    assert not again.tracker.broken
    list(rerun(find_nodes(small, "reward_model", 1), again, force=True))
    assert {n: [r.info.run_id for r in runs] for n, runs in all_runs(walk).items()} == before
    assert len(client_of(walk).search_model_versions("name = 'safety-rm'")) == 1

    fresh = new_walk(small, tracked=True)
    object.__setattr__(fresh.where, "local", fresh.where.local / "elsewhere")
    walk_all(fresh)
    runs = all_runs(fresh)
    assert runs.keys() == before.keys()
    assert runs["pretrain"][0].data.metrics["final/bits_per_byte_after"] == 2.5
    assert runs["pretrain"][0].data.metrics["train/loss"] == 1.0
    # at the time when it was, not when it was recorded
    assert runs["pretrain"][0].info.end_time / 1000 == ended_at(walk, "base/pretrain")


def test_ppos_samples_are_one_table_for_each_step_and_never_sent_twice(
    new_walk: NewWalk,
) -> None:
    recipe = load_recipe("demo", ["num_versions=1", "ppo_from_version=1"])
    walk = new_walk(recipe, tracked=True)
    walk_all(walk)
    list(rerun(find_nodes(recipe, "ppo", 1), new_walk(recipe, tracked=True), force=True))
    (run,) = all_runs(walk)["ppo"]
    client = client_of(walk)
    (file,) = client.list_artifacts(run.info.run_id, "samples")
    assert file.path == "samples/00000010.json"
    table = client.load_table("1", file.path, run_ids=[run.info.run_id])
    assert table.to_dict("records") == [{"prompt": "Who?", "response": "Me.", "kl": 0.5}]


def test_a_dead_server_warns_once_and_fails_nothing(
    new_walk: NewWalk, small: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    walk = new_walk(small, tracked=True)
    warnings: list[str] = []
    walk.tracker.warn = warnings.append
    assert len(walk_all(walk)) == 12
    (warning,) = warnings
    assert warning.startswith("MLflow at http://127.0.0.1:9 is not taking records (")


def test_a_database_that_takes_no_row_is_told_in_one_sentence(
    new_walk: NewWalk, small: Recipe, capfd: pytest.CaptureFixture[str]
) -> None:
    walk = new_walk(small, tracked=True)
    with walk.tracker:
        walk_all(walk)
    with closing(sqlite3.connect(walk.where.local / "mlflow" / "mlflow.db")) as database:
        database.execute("DROP TABLE runs")
    again = new_walk(small, tracked=True)
    warnings: list[str] = []
    again.tracker.warn = warnings.append
    with again.tracker:
        list(rerun(find_nodes(small, "sft", None), again, force=True))
    assert any("no such table" in warning for warning in warnings), warnings
    assert "Traceback" not in "".join(capfd.readouterr())
    assert "Traceback" in (walk.where.local / "mlflow" / "errors.log").read_text()
