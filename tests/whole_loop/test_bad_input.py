"""A user's mistake is one paragraph with file, row and remedy, exit code 2, and nothing made."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from whole_loop_home import TINY, Rlhf, assert_one_paragraph, believed, rlhf_here, run_rlhf


def ingest(path: Path, tmp_path: Path, role: str, file_format: str, run: Rlhf = rlhf_here) -> Any:
    home = tmp_path / "home"
    arguments = ["--role", role, "--format", file_format]
    if role in ("preferences", "prompts"):
        arguments += ["--domain", "helpfulness"]
    out = run("ingest", path, *arguments, home=home, cwd=tmp_path)
    assert not list(home.glob("manifests/*.json"))
    return out


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PAIR = {"prompt": "hello", "chosen": "good day", "rejected": "no"}


def test_truncated_gzip(tmp_path: Path):
    path = tmp_path / "text.jsonl.gz"
    whole = gzip.compress(b"\n".join(b'{"text": "%d a document"}' % i for i in range(2000)))
    path.write_bytes(whole[: len(whole) // 2])
    out = ingest(path, tmp_path, "documents", "jsonl_text", run_rlhf)
    assert_one_paragraph(out, "text.jsonl.gz")


def test_missing_field(tmp_path: Path):
    path = lines(tmp_path / "qa.jsonl", {"question": "a", "answer": "b"}, {"question": "c"})
    out = ingest(path, tmp_path, "demonstrations", "qa")
    assert_one_paragraph(out, "qa.jsonl", "2", "answer")


def test_a_rating_outside_the_four(tmp_path: Path):
    path = lines(tmp_path / "pairs.jsonl", PAIR, PAIR | {"rating": "enormously_better"})
    out = ingest(path, tmp_path, "preferences", "pairs")
    assert_one_paragraph(out, "pairs.jsonl", "2", "rating")


def test_an_empty_response(tmp_path: Path):
    path = lines(tmp_path / "pairs.jsonl", PAIR, PAIR | {"rejected": "  "})
    out = ingest(path, tmp_path, "preferences", "pairs")
    assert_one_paragraph(out, "pairs.jsonl", "2", "rejected")


def test_an_unknown_recipe_key(tmp_path: Path):
    out = rlhf_here("plan", "--recipe", TINY, "--set", "sft.learning_rat=1", home=tmp_path / "h")
    assert_one_paragraph(out, "learning_rat", "learning_rate")


def test_a_prompt_longer_than_the_context(home: Path, tmp_path: Path):
    out = rlhf_here(
        "stage", "sample_pairs", "--recipe", TINY, "--version", "1",
        "--set", "sample_pairs.max_new_tokens=110", home=shutil.copytree(home, tmp_path / "h"),
    )  # fmt: skip
    assert_one_paragraph(out, "Prompt", "tokens", "overlong=drop")


def test_nan_in_a_weights_file(home: Path, models: dict[str, Path], tmp_path: Path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(models["base:0"], tmp_path / "model"))
    weights = folder / "model.safetensors"
    weights.chmod(0o644)
    tensors = load_file(weights)
    tensors["model.norm.weight"][3] = torch.nan
    weights.unlink()
    save_file(tensors, weights, metadata={"format": "pt"})
    copy = Path(shutil.copytree(home, tmp_path / "home"))
    before = believed(copy)
    setting = f"pretrain.init_from.path={folder}"
    out = rlhf_here("stage", "pretrain", "--recipe", TINY, "--set", setting, home=copy)
    assert_one_paragraph(out, "model.safetensors", "model.norm.weight", "NaN")
    assert believed(copy) == before


@pytest.mark.parametrize("name", ["preferences", "documents"])
def test_a_table_under_the_wrong_contract(home: Path, name: str):
    table = next((home / "objects").glob("*/prompts.parquet"))
    out = rlhf_here("check", table, "--contract", name, home=home)
    assert_one_paragraph(out, "prompts.parquet", name)
