"""What a run survives, and what more processes change; test_kills.py kills it in every stage."""

import json
import shutil
from pathlib import Path

import pytest
from whole_loop_home import TINY, digests, rlhf_here, run_rlhf


def sft_losses(home: Path, folder: Path, *arguments: str) -> list[float]:
    """Loss of every step of a forced SFT in a copy of the home."""
    copy = Path(shutil.copytree(home, folder / "home"))
    before = set(copy.glob("work/*/attempt-*/metrics.jsonl"))
    settings = ("--set", "sft.num_epochs=4", "--set", "sft.global_batch_size=8")
    out = run_rlhf("stage", "sft", "--recipe", TINY, "--force", *settings, *arguments, home=copy)
    assert out.returncode == 0, out.stderr[-2000:]
    (metrics,) = set(copy.glob("work/*/attempt-*/metrics.jsonl")) - before
    return [json.loads(line)["train/loss"] for line in metrics.read_text().splitlines()]


@pytest.fixture(scope="module")
def losses_alone(home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The loss curve of one process."""
    losses = sft_losses(home, tmp_path_factory.mktemp("alone"))
    assert len(losses) >= 20
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_processes_give_the_loss_curve_of_one(
    home: Path, losses_alone: list[float], tmp_path: Path, zero_stage: int
):
    zero = f"sft.engine.zero_stage={zero_stage}"
    ranks = sft_losses(home, tmp_path, "--num-processes", "2", "--set", zero)
    assert ranks == pytest.approx(losses_alone, abs=1e-3)


@pytest.mark.slow
def test_a_damaged_object_is_made_again(home: Path, tmp_path: Path):
    copy = Path(shutil.copytree(home, tmp_path / "home"))
    rows = json.loads(rlhf_here("models", "--json", home=copy).stdout)
    path = next(Path(row["path"]) for row in rows if row["name"] == "safety-rm")
    weights = path / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(damaged)

    out = run_rlhf("run", "--recipe", TINY, home=copy)

    assert out.returncode == 0, out.stderr[-2000:]
    assert digests(copy) == digests(home)
