"""`rlhf gc`: what it keeps, and what it frees."""

import os
import shutil
import time
from pathlib import Path

import pytest
from fake_stages import walk_all
from filled_home import SMALL, NewWalk, head, rlhf, run, to_run, two_results

from data_contracts.ledger import Ledger
from data_contracts.store import Store
from flows.graph import base_nodes
from flows.occupied import claim
from flows.planner import Step, plan
from flows.recipe import load_recipe
from stages.runtime.attempts import new_attempt
from stages.runtime.stage import stage_module


def age(home: Path, days: float) -> None:
    then = time.time() - days * 86_400
    for path in home.rglob("*"):
        os.utime(path, (then, then))


def test_gc_keeps_history_and_inputs_and_removes_the_rest(new_walk: NewWalk, home: Path) -> None:
    recipe, first, _ = two_results(new_walk, home)
    store = Store.open(home)
    whole = set(store.objects())
    key, _ = head(home, "sft", 0)
    old_attempt = store.attempts(key)[0]
    store.new_attempt(key)
    (old_attempt / "log.txt").write_text("long")
    stray = home / "stray"
    stray.mkdir()
    (stray / "a").write_text("result of nobody")
    unreferenced = store.publish(stray, "files").digest
    given_up = "f" * 64
    (store.work(given_up) / "checkpoints" / "step-00000002").mkdir()
    (store.work(given_up) / "checkpoints" / "step-00000002" / "state.json").write_text("{}")
    by_hand = "e" * 64
    manifest = store.recorded(key)
    assert manifest is not None
    store.commit(manifest.model_copy(update={"key": by_hand}))

    assert "would free 0.0 MB" in rlhf(home, "gc", "--dry-run").stdout  # all of it is young
    age(home, 8)
    dry = rlhf(home, "gc", "--dry-run").stdout
    assert unreferenced in store.objects()
    result = rlhf(home, "gc")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[:-1] == dry.splitlines()[:-1]
    assert f"work/{given_up}  0.0 MB  no version stands on it" in result.stdout
    assert not (home / "work" / given_up).exists()
    assert not (home / "manifests" / f"{by_hand}.json").exists()
    assert set(Store.open(home).objects()) == whole
    assert sorted(p.name for p in old_attempt.iterdir()) == ["metrics.jsonl"]
    assert [p.name for p in store.attempts(key)] == ["attempt-1", "attempt-2"]
    assert "freed 0.0 MB" in rlhf(home, "gc").stdout.splitlines()[0]
    # nothing that a run, or going back, needs is gone
    assert not to_run(recipe, home)
    assert rlhf(home, "fsck").exit_code == 0
    assert not rlhf(
        home, *["rollback", "--version", "1", "--stage", "reward_model", "--to"], first[0]
    ).exit_code


def test_gc_keeps_what_the_next_run_resumes_from(new_walk: NewWalk, home: Path) -> None:
    recipe = run(new_walk, "num_versions=0")
    changed = recipe.model_copy(update={"sft": recipe.sft.model_copy(update={"num_epochs": 9})})
    claim(new_walk(changed).where, changed)
    store = Store.open(home)
    (key,) = [s.key for s in plan(changed, store, Ledger(store)) if s.action == "run"]
    assert key is not None
    attempt = store.new_attempt(key)
    (attempt.parent / "checkpoints" / "step-00000002").write_text("weights")
    age(home, 100)
    result = rlhf(home, "gc", "--older-than", "0", "--unfinished")
    assert result.exit_code == 0, result.output
    assert (attempt.parent / "checkpoints" / "step-00000002").exists()
    assert f"work/{key}/checkpoints  0.0 MB  kept: the recipe's next run" in result.stdout


def test_gc_keeps_everything_unfinished_where_a_source_file_is_not_here(
    new_walk: NewWalk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the file nobody can tell which stage is next, and so what it would resume from."""
    run(new_walk, "num_versions=0")
    checkpoint = stopped_run(home, "other settings")
    age(home, 100)
    unknown = Step(base_nodes(load_recipe("demo"))[0], "run", "never run", missing="a.jsonl")
    monkeypatch.setattr("flows.planner.plan", lambda *_: [unknown])
    result = rlhf(home, "gc", "--older-than", "0", "--unfinished")
    assert result.exit_code == 0, result.output
    assert checkpoint.exists()
    assert "kept: the recipe's next run may resume from it" in result.stdout


def stopped_run(home: Path, how: str) -> Path:
    """The checkpoint of a run of sft that was stopped, by force or with other settings."""
    store = Store.open(home)
    finished = store.recorded(head(home, "sft", 0)[0])
    assert finished is not None
    key = finished.key if how == "forced" else "f" * 64
    config = stage_module("sft").Config.model_validate(finished.config)
    new_attempt(store, key, config, forced=how == "forced")
    checkpoint = store.work_folder(key) / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    # the next one found the disk full, and could not write a word about itself
    store.new_attempt(key)
    return checkpoint


def starts_from(home: Path, checkpoint: Path, how: str) -> bool:
    """Whether the same command finds the checkpoint."""
    store = Store.open(home)
    finished = store.recorded(head(home, "sft", 0)[0])
    assert finished is not None
    config = stage_module("sft").Config.model_validate(finished.config)
    new_attempt(store, checkpoint.parents[1].name, config, forced=how == "forced")
    return checkpoint.exists()


@pytest.mark.parametrize("how", ["forced", "other settings"])
def test_gc_keeps_what_a_stopped_run_was_promised_to_go_on_from(
    new_walk: NewWalk, home: Path, how: str
) -> None:
    run(new_walk, "num_versions=0")
    checkpoint = stopped_run(home, how)
    age(home, 6)
    result = rlhf(home, "gc", "--older-than", "0")
    assert result.exit_code == 0, result.output
    name = checkpoint.parent.relative_to(home)
    assert f"{name}  0.0 MB  kept: a run that has not finished resumes from it" in result.stdout
    assert starts_from(home, checkpoint, how)


@pytest.mark.parametrize("how", ["forced", "other settings"])
@pytest.mark.parametrize(
    ("days", "option"), [(6, "--unfinished"), (8, "")], ids=["given up", "after a week"]
)
def test_gc_frees_what_a_stopped_run_left_when_it_is_given_up(
    new_walk: NewWalk, home: Path, how: str, days: float, option: str
) -> None:
    run(new_walk, "num_versions=0")
    checkpoint = stopped_run(home, how)
    age(home, days)
    result = rlhf(home, "gc", "--older-than", "0", *filter(None, [option]))
    assert result.exit_code == 0, result.output
    assert not checkpoint.exists()
    assert "kept" not in result.stdout


def test_gc_frees_the_checkpoints_of_an_attempt_that_has_finished(
    new_walk: NewWalk, home: Path
) -> None:
    """Its process was killed between the manifest and their removal."""
    run(new_walk, "num_versions=0")
    key, _ = head(home, "sft", 0)
    checkpoint = home / "work" / key / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    result = rlhf(home, "gc", "--older-than", "0")
    assert f"work/{key}/checkpoints  0.0 MB  nothing resumes from it" in result.stdout
    assert not checkpoint.exists()


def test_gc_keeps_registered_models(new_walk: NewWalk, home: Path) -> None:
    recipe = load_recipe("demo", SMALL)
    walk = new_walk(recipe, tracked=True)
    claim(walk.where, recipe)
    with walk.tracker:
        walk_all(walk)
    assert not walk.tracker.broken
    registered = head(home, "rejection_sampling")[1]
    shutil.rmtree(home / "iterations" / "v1")  # the ledger forgets it, MLflow does not
    age(home, 8)
    before = set(Store.open(home).objects())
    assert rlhf(home, "gc").exit_code == 0
    after = set(Store.open(home).objects())
    assert registered in after
    assert after < before


def test_gc_asks_mlflow_or_removes_nothing(
    new_walk: NewWalk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(new_walk, "num_versions=0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = rlhf(home, "gc", "--older-than", "0")
    assert result.exit_code == 2
    assert "a registered model's files must not be removed" in result.stderr
