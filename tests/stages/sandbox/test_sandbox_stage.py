"""The stage around the world: one artifact of four files, the same for the same seed."""

import pytest

from data_contracts.store import Store
from stages.runtime.stage import run_stage
from stages.sandbox_world import Config

SMALL = {"num_documents": 10, "num_demonstrations": 10, "num_prompts": 10, "num_open_pairs": 10}


def made(home, seed):
    store = Store.open(home)
    manifest = run_stage("sandbox_world", Config(seed=seed, **SMALL), store).manifest
    return manifest, store.local(manifest.outputs["files"])


def test_stage_writes_the_four_files(tmp_path):
    manifest, folder = made(tmp_path, seed=0)
    assert manifest.outputs["files"].kind == "files"
    assert sorted(path.name for path in folder.glob("*.jsonl")) == [
        "demonstrations.jsonl",
        "documents.jsonl",
        "open_preferences.jsonl",
        "prompts.jsonl",
    ]
    assert manifest.metrics["num_open_preferences"] == 10


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_the_digest_follows_the_seed(tmp_path, seed, same):
    first, _ = made(tmp_path / "one", seed=0)
    second, _ = made(tmp_path / "two", seed=seed)
    assert (first.outputs["files"].digest == second.outputs["files"].digest) is same
