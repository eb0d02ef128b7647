"""`make gpu` where there is no GPU: it says so, and its code runs at tiny sizes on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_what_is_needed(tmp_path):
    done = run("--output", tmp_path / "gpu.json")
    assert done.returncode == 2
    assert done.stderr.startswith("This benchmark needs an NVIDIA GPU")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.slow
def test_every_figure_is_there_on_a_cpu_too(tmp_path):
    done = run("--device", "cpu", "--size", "tiny", "--output", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["machine"]["torch"] == torch.__version__
    checked = {check["what"].split(",")[0] for check in results["parity"]}
    assert {"RMSNorm", "SwiGLU", "rotary positions", "attention 4:4", "attention 4:1"} < checked
    assert {"cross-entropy", "log-probabilities", "decoding in fp32"} < checked
    assert all(check["holds"] for check in results["parity"])
    assert [row["documents"] for row in results["training"]] == ["2 of 64", "16 of 8", "2 of 64"]
    assert all(row["tokens_per_second"] > 0 for row in results["training"] + results["generation"])
    assert "6 operations a parameter" in done.stdout
