"""A stage in this process: reuse, force, mend, fail, resume; and the stage's own command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runtime_toys.counting import Config

from data_contracts.artifacts import inputs_of
from data_contracts.errors import UserError
from data_contracts.keys import stage_key
from data_contracts.store import Store
from stages.runtime.attempts import first_failure
from stages.runtime.distributed import process_group
from stages.runtime.stage import Launch, StageResult, run_stage, stage_module
from stages.runtime.workdir import WorkDir, read_metrics

STAGE = "runtime_toys.counting"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "home")


def key_of(config: Config) -> str:
    return stage_key(STAGE, "1", config)


def newest_attempt(store: Store, config: Config) -> Path:
    return store.attempts(key_of(config))[-1]


def test_a_stage_runs_once_and_says_what_it_did(store: Store) -> None:
    first = run_stage(STAGE, Config(seed=3), store)
    manifest = first.manifest
    assert not first.reused
    assert (manifest.stage, manifest.stage_version, manifest.attempt) == (STAGE, "1", 1)
    assert manifest.config["seed"] == 3
    assert manifest.metrics["resumed"] == 0
    assert manifest.packages["torch"] == torch.__version__
    assert len(manifest.code_digest) == 64
    assert store.local(manifest.outputs["model"]).joinpath("weights.bin").stat().st_size > 500_000
    again = run_stage(STAGE, Config(seed=3), store)
    assert again == StageResult(manifest, reused=True)


def test_an_attempt_keeps_config_metrics_and_progress(store: Store) -> None:
    config = Config()
    run_stage(STAGE, config, store)
    attempt = newest_attempt(store, config)
    assert sorted(os.listdir(attempt)) == [
        *("attempt.json", "config.json", "metrics.jsonl", "progress.json")
    ]
    assert Config.model_validate_json((attempt / "config.json").read_text()) == config
    progress = json.loads((attempt / "progress.json").read_text())
    assert (progress["done"], progress["total"], progress["unit"]) == (6, 6, "step")
    rows = read_metrics(store, key_of(config))
    assert [row["step"] for row in rows] == list(range(6))
    assert rows[0]["train/learning_rate"] > 0
    assert rows[0]["time"] > 1e9


def test_a_forced_run_is_bitwise_the_same(store: Store) -> None:
    first = run_stage(STAGE, Config(), store).manifest
    again = run_stage(STAGE, Config(), store, force=True)
    assert not again.reused
    assert again.manifest.outputs == first.outputs
    assert (again.manifest.attempt, again.manifest.metrics) == (2, first.metrics)


def test_a_corrupt_output_is_made_again(store: Store) -> None:
    first = run_stage(STAGE, Config(), store).manifest
    weights = store.local(first.outputs["model"]) / "weights.bin"
    content = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(b"\0" + content[1:])
    again = run_stage(STAGE, Config(), store)
    assert not again.reused
    assert again.manifest.outputs == first.outputs
    assert store.holds(first.outputs["model"])


@pytest.mark.parametrize("num_steps", [1, 4])
def test_another_config_is_another_run(store: Store, num_steps: int) -> None:
    assert not run_stage(STAGE, Config(num_steps=num_steps), store).reused
    assert run_stage(STAGE, Config(num_steps=num_steps, failure="bug"), store).reused


def test_a_failed_attempt_keeps_what_explains_it_and_no_output(store: Store) -> None:
    config = Config(failure="user", fail_at=3)
    with pytest.raises(UserError, match=r"Klingon\. Translate them\."):
        run_stage(STAGE, config, store)
    attempt = newest_attempt(store, config)
    assert sorted(os.listdir(attempt)) == [
        *("attempt.json", "config.json", "error-00000.json", "metrics.jsonl", "progress.json")
    ]
    failure = first_failure(attempt)
    assert failure is not None
    assert failure.problem == "The prompts are in Klingon"
    assert "counting.py" in failure.traceback
    assert store.manifest(key_of(config)) is None


def test_the_next_attempt_resumes_where_the_failed_one_saved(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        run_stage(STAGE, Config(failure="bug", fail_at=3), store)
    resumed = run_stage(STAGE, Config(), store).manifest
    assert (resumed.metrics["resumed"], resumed.attempt) == (2, 2)
    assert [row["step"] for row in read_metrics(store, resumed.key)] == list(range(6))
    straight = run_stage(STAGE, Config(), store, force=True).manifest
    assert (straight.metrics["resumed"], straight.outputs) == (0, resumed.outputs)


def test_a_forced_run_starts_over_but_resumes_itself(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        run_stage(STAGE, Config(failure="bug", fail_at=3), store)
    with pytest.raises(ZeroDivisionError):
        run_stage(STAGE, Config(failure="bug", fail_at=5), store, force=True)
    first_of_forced = json.loads(
        (store.attempts(key_of(Config()))[1] / "metrics.jsonl").read_text().splitlines()[0]
    )
    assert first_of_forced["step"] == 0
    store.new_attempt(key_of(Config()))  # a full disk kept this one from writing a word
    done = run_stage(STAGE, Config(), store, force=True).manifest
    assert (done.metrics["resumed"], done.attempt) == (4, 4)


def test_a_full_disk_is_explained(store: Store) -> None:
    with pytest.raises(UserError, match=r"No space left on device .*Free space"):
        run_stage(STAGE, Config(failure="disk", fail_at=1), store)


def test_kill_9_in_the_body_and_again_is_bitwise_the_same(store: Store, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(Config(failure="kill", fail_at=5).model_dump_json())
    killed = stage_command("--config", str(config), "--home", store.home)
    assert killed.returncode == -9
    assert (newest_attempt(store, Config()) / "outputs" / "partial" / "half").exists()
    config.write_text(Config().model_dump_json())
    done = stage_command("--config", str(config), "--home", store.home)
    assert done.returncode == 0, done.stderr
    assert "Resuming after step 4" in done.stderr
    assert done.stdout.startswith("done")
    manifest = store.manifest(key_of(Config()))
    assert manifest is not None
    assert not (store.attempts(manifest.key)[0] / "outputs").exists()
    assert run_stage(STAGE, Config(), store).reused
    # The subprocess ran on as many threads as this process does.
    straight = run_stage(STAGE, Config(), store, force=True).manifest
    assert straight.outputs == manifest.outputs


def test_the_command_line_explains_in_one_paragraph(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"num_stepz": 3}')
    done = stage_command("--config", str(config), "--home", str(tmp_path / "home"))
    assert done.returncode == 2
    assert "num_stepz" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def stage_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    return subprocess.run(
        [sys.executable, "-m", STAGE, *arguments], env=environment, capture_output=True, text=True
    )


def test_unknown_stages_are_named() -> None:
    with pytest.raises(UserError, match="no stage 'sftt'"):
        stage_module("sftt")
    with pytest.raises(UserError, match="no VERSION, Config, run"):
        stage_module("runtime_toys.models")


def test_inputs_are_found_at_every_depth() -> None:
    reference = {"digest": "0" * 64, "kind": "files"}
    config = Config.model_validate({"inputs": {"v1": [reference], "v2": [reference, reference]}})
    assert list(inputs_of(config)) == ["inputs.v1.0", "inputs.v2.0", "inputs.v2.1"]


def test_threads_are_set_for_the_run_alone(store: Store) -> None:
    before = torch.get_num_threads()
    run_stage(STAGE, Config(num_steps=1), store, launch=Launch(num_threads=2))
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="at least 1"):
        Launch(num_threads=0)


def test_progress_is_written_at_most_five_times_a_second(store: Store, tmp_path: Path) -> None:
    work = WorkDir(tmp_path, process_group(), store)
    for done in range(1000):
        work.progress(done, 1001, "step")
    assert json.loads((tmp_path / "progress.json").read_text())["done"] < 1000
    work.progress(1001, 1001, "step", loss=float(np.float32(0.5)))
    assert json.loads((tmp_path / "progress.json").read_text())["loss"] == 0.5
