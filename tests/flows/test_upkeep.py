"""History, rollback and fsck of a home that fake stages have filled, and who may not run beside."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_stages import walk_all
from filled_home import NODE, SMALL, NewWalk, head, reason_of, rlhf, run, to_run, two_results

from data_contracts.ledger import Ledger
from data_contracts.store import Store
from flows.planner import plan
from flows.recipe import load_recipe


def test_history_lists_heads_with_digests_and_times(new_walk: NewWalk, home: Path) -> None:
    _, first, second = two_results(new_walk, home)
    result = rlhf(home, "history", "--version", "1", "--stage", "reward_model", "--json")
    rows = json.loads(result.stdout)
    found = [r for r in rows if r["node"] == "reward_model-safety"]
    assert [(r["key"], r["outputs"]["model"]) for r in found] == [first, second]
    assert [r["is_head"] for r in found] == [False, True]
    assert {r["node"] for r in rows} == {"reward_model-safety", "reward_model-helpfulness"}
    shown = rlhf(home, "history").stdout
    assert first[1][:12] in shown
    assert found[0]["at"].split("+")[0] in shown
    assert "base" in shown


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--stage", "nosuch"], "nosuch has no history in"),
        (["--version", "99"], "v99 has no history in"),
        (["--version", "0", "--stage", "ppo"], "ppo of base has no history in"),
    ],
    ids=["stage", "version", "both"],
)
def test_a_history_of_nothing_is_refused(
    new_walk: NewWalk, home: Path, asked: list[str], message: str
) -> None:
    run(new_walk, "num_versions=0")
    result = rlhf(home, "history", *asked)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_history_of_an_empty_home_is_empty(home: Path) -> None:
    Store.open(home)
    assert rlhf(home, "history", "--json").stdout.strip() == "[]"


def test_rollback_stands_until_settings_change_and_what_is_downstream_follows(
    new_walk: NewWalk, home: Path
) -> None:
    recipe, first, second = two_results(new_walk, home)
    assert not to_run(recipe, home)

    result = rlhf(
        home, *["rollback", "--version", "1", "--stage", "reward_model", "--to"], first[1][:10]
    )
    assert result.exit_code == 0, result.output
    assert f"stale: v1/rejection_sampling, since {NODE}:model is another one now" in result.output
    assert head(home, "reward_model-safety") == first
    # the first run's rejection sampling had these very inputs: everything is there already
    assert not to_run(recipe, home)
    assert reason_of(recipe, home, NODE) == f"rolled back to {first[0][:12]}"
    walk_all(new_walk(recipe))
    assert head(home, "reward_model-safety") == first
    entries = Ledger(Store.open(home)).history(1, "reward_model-safety")
    assert [e.key for e in entries] == [first[0], second[0], first[0]]  # only grows

    # other settings downstream are planned on the model that was gone back to
    other = load_recipe("demo", [*SMALL, "safety_rm.num_epochs=7", "evaluate.max_new_tokens=9"])
    assert list(to_run(other, home)) == ["v1/evaluate"]
    # new settings of the stage itself end it
    changed = load_recipe("demo", [*SMALL, "safety_rm.num_epochs=8"])
    assert "safety_rm" in to_run(changed, home)[NODE] or "num_epochs" in to_run(changed, home)[NODE]

    # and so does going forward again, or force
    assert (
        rlhf(
            home,
            *["rollback", "--version", "1", "--stage", "reward_model-safety", "--to"],
            second[0],
        ).exit_code
        == 0
    )
    assert reason_of(recipe, home, NODE) == "same settings and inputs, files verified"
    assert head(home, "reward_model-safety") == second


def test_force_ends_a_rollback(new_walk: NewWalk, home: Path) -> None:
    recipe, first, second = two_results(new_walk, home)
    rlhf(home, *["rollback", "--version", "1", "--stage", "reward_model", "--to"], first[1])
    store = Store.open(home)
    forced = {str(s.node.id): s for s in plan(recipe, store, Ledger(store), [NODE])}
    assert (forced[NODE].action, forced[NODE].key) == ("run", second[0])
    result = rlhf(
        home, *["stage", "reward_model", "--domain", "safety", "--version", "1", "--force"]
    )
    assert result.exit_code == 0, result.output
    assert head(home, "reward_model-safety") == second


def test_rollback_to_other_outputs_of_the_same_key(new_walk: NewWalk, home: Path) -> None:
    """On a GPU, or after a change of the code, a forced run has its key and other digests."""
    recipe = run(new_walk)
    key, digest = head(home, "sft", 0)
    store = Store.open(home)
    manifest = store.recorded(key)
    assert manifest is not None
    folder = home / "work" / "other"
    shutil.copytree(store.local(manifest.outputs["model"]), folder)
    (folder / "content.json").write_text("other weights")
    other = store.publish(folder, "checkpoint")
    store.commit(manifest.model_copy(update={"outputs": {"model": other}, "attempt": 2}))
    Ledger(store).set_head(0, "sft", key)
    walk_all(new_walk(recipe))
    assert head(home, "sft", 0) == (key, other.digest)

    result = rlhf(home, *["rollback", "--version", "0", "--stage", "sft", "--to"], digest)
    assert result.exit_code == 0, result.output
    again = Store.open(home).recorded(key)
    assert again == manifest
    assert head(home, "sft", 0) == (key, digest)
    assert not to_run(recipe, home)  # what stood on the first outputs is there
    walk_all(new_walk(recipe))
    assert rlhf(home, "fsck").exit_code == 0


@pytest.mark.parametrize(
    ("to", "stage", "message"),
    [
        ("0000", "sft", "No run of sft of base has the digest 0000"),
        ("xyz", "sft", "'xyz' is no digest"),
        ("0000", "spt", "spt of base has no history"),
    ],
    ids=["unknown", "not-hex", "no-stage"],
)
def test_a_rollback_that_means_nothing_is_refused(
    new_walk: NewWalk, home: Path, to: str, stage: str, message: str
) -> None:
    run(new_walk, "num_versions=0")
    result = rlhf(home, "rollback", "--version", "0", "--stage", stage, "--to", to)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_rollback_to_files_that_are_gone_is_refused(new_walk: NewWalk, home: Path) -> None:
    _, first, second = two_results(new_walk, home)
    shutil.rmtree(home / "objects" / first[1])
    command = *["rollback", "--version", "1", "--stage", "reward_model", "--to"], first[1]
    result = rlhf(home, *command)
    assert result.exit_code == 2
    assert "is missing. Choose another entry of `rlhf history`" in result.stderr
    assert head(home, "reward_model-safety") == second
    assert "stands on" in rlhf(home, *command[:-1], second[1]).stderr


def corrupt(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("{")


def test_fsck_names_every_file_and_its_remedy(new_walk: NewWalk, home: Path) -> None:
    run(new_walk)
    clean = rlhf(home, "fsck")
    assert (clean.exit_code, "no findings" in clean.stdout) == (0, True), clean.output

    store = Store.open(home)
    key, digest = head(home, "sft", 0)
    corrupt(home / "objects" / digest / "content.json")
    lost, _ = head(home, "pretrain", 0)
    (home / "manifests" / f"{lost}.json").unlink()
    corrupt(home / "manifests" / f"{key}.json")
    corrupt(home / "iterations/v1/evaluate.json")
    corrupt(home / "recipe.json")
    store.write("pins/v1.json", b"{")
    checkpoint = store.work(key) / "checkpoints" / "step-00000004"
    checkpoint.mkdir()
    (checkpoint / "state.json").write_text("{}")
    (checkpoint / "manifest.json").write_text(
        json.dumps({"format": "fragments-1", "files": {"state.json": "0" * 64}})
    )
    result = rlhf(home, "fsck", "--json")
    assert result.exit_code == 1
    findings = {f["file"]: f for f in json.loads(result.stdout)["findings"]}
    assert findings.keys() == {
        f"objects/{digest}",
        "iterations/base/pretrain.json",
        "iterations/base/sft.json",
        f"manifests/{key}.json",
        "iterations/v1/evaluate.json",
        "recipe.json",
        "pins/v1.json",
        f"work/{key}/checkpoints/step-00000004",
    }
    assert findings[f"objects/{digest}"]["remedy"] == "Make it again: rlhf stage sft --version 0"
    assert "content.json has changed" in findings[f"objects/{digest}"]["problem"]
    assert all(f["remedy"] for f in findings.values())
    assert f"objects/{digest}: it is corrupt" in rlhf(home, "fsck").stdout


def test_the_remedies_of_fsck_mend_the_home(new_walk: NewWalk, home: Path) -> None:
    run(new_walk, "num_versions=0")
    key, digest = head(home, "sft", 0)
    corrupt(home / "objects" / digest / "content.json")
    (home / "manifests" / f"{head(home, 'pretrain', 0)[0]}.json").unlink()
    assert rlhf(home, "fsck").exit_code == 1
    for node in ("pretrain", "sft"):
        made = rlhf(home, "stage", node, "--version", "0")
        assert made.exit_code == 0, made.output
    assert rlhf(home, "fsck").exit_code == 0
    assert head(home, "sft", 0) == (key, digest)


HOLDER = """
import sys, time
from data_contracts.store import Store
with Store.open(sys.argv[1]).lock(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("lock", ["runs", "f" * 64], ids=["run", "stage-by-hand"])
def test_upkeep_refuses_beside_a_live_process_with_its_pid(home: Path, lock: str) -> None:
    Store.open(home)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home), lock], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for command in (
            ["gc"],
            ["fsck"],
            ["rollback", "--version", "1", "--stage", "ppo", "--to", "0000"],
        ):
            result = rlhf(home, *command)
            assert result.exit_code == 2
            assert f"process {holder.pid} on" in result.stderr.lower()
    finally:
        holder.kill()
        holder.communicate()


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lock can be opened for writing, as on a read-only mount."""
    real = Path.open

    def refuse(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if path.suffix == ".lock" and mode != "r":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)


def test_what_changes_nothing_needs_no_lock_in_a_read_only_home(
    new_walk: NewWalk, home: Path, read_only: None
) -> None:
    store = Store.open(home)
    damaged = f"manifests/{'f' * 64}.json"
    store.write(damaged, b"{")
    looked = rlhf(home, "fsck")
    assert (looked.exit_code, f"{damaged}: it is damaged" in looked.stdout) == (1, True)
    dry = rlhf(home, "gc", "--dry-run")
    assert (dry.exit_code, dry.stdout) == (0, "would free 0.0 MB\n"), dry.output
    for command in (["gc"], ["stage", "sandbox_world", "--recipe", "demo"]):
        refused = rlhf(home, *command)
        assert refused.exit_code == 2
        assert "Cannot open the lock" in refused.stderr
        assert "Read-only file system" in refused.stderr


@pytest.mark.parametrize("lock", ["runs", "f" * 64], ids=["run", "stage-by-hand"])
def test_a_check_of_a_read_only_home_is_refused_beside_a_run_all_the_same(
    home: Path, lock: str, request: pytest.FixtureRequest
) -> None:
    with Store.open(home).lock(lock):
        request.getfixturevalue("read_only")
        result = rlhf(home, "fsck")
    assert result.exit_code == 2
    assert f"Process {os.getpid()} on" in result.stderr


def test_upkeep_of_no_home_makes_none(home: Path) -> None:
    for command in (["gc"], ["fsck"], ["history"]):
        result = rlhf(home, *command)
        assert result.exit_code == 2
        assert "There is no home at" in result.stderr
    assert not home.exists()
