import json
import os
from collections.abc import Callable
from pathlib import Path

import fake_stages
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from data_contracts.store import Store
from flows import report
from flows.cli import app
from flows.recipe import Recipe
from flows.runner import Walk

NewWalk = Callable[..., Walk]


def rlhf(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def paragraph(result: Result) -> str:
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_help_teaches() -> None:
    assert "rlhf demo" in rlhf("--help").output
    for command in ("demo", "run", "stage", "plan", "status", "models", "ingest", "check"):
        result = rlhf(command, "--help")
        assert result.exit_code == 0
        assert "--help" in result.output


def test_plan_of_the_largest_model_makes_no_home(tmp_path: Path) -> None:
    result = rlhf("plan", "--recipe", "70b", "--settings")
    assert result.exit_code == 0
    assert "v5/ppo" in result.output
    assert "n_layers: 80" in result.output
    assert "To supply: The recipe names no sources" in result.output
    assert not (tmp_path / "rlhf_home").exists()


def test_plan_as_json() -> None:
    steps = json.loads(rlhf("plan", "--recipe", "demo", "--json").stdout)["steps"]
    assert steps[0]["node"] == "sandbox_world"
    assert {step["action"] for step in steps} == {"run"}


def test_errors_are_one_paragraph() -> None:
    assert "did you mean ppo.kl_beta?" in paragraph(
        rlhf("plan", "--recipe", "70b", "--set", "ppo.kl_bet=1")
    )
    assert "no recipe 'dmo'" in paragraph(rlhf("plan", "--recipe", "dmo"))
    assert "Add --recipe with one of" in paragraph(rlhf("plan"))
    assert "no table contract 'x'" in paragraph(rlhf("check", "f.parquet", "--contract", "x"))
    assert "base/sandbox_world has not run" in paragraph(
        rlhf("stage", "ingest", "--recipe", "demo")
    )


def test_an_empty_home(tmp_path: Path) -> None:
    assert json.loads(rlhf("status", "--json").stdout) == []
    assert json.loads(rlhf("models", "--json").stdout) == []
    assert "rlhf demo" in rlhf("models").output
    assert not (tmp_path / "rlhf_home").exists()


@pytest.fixture
def home(tmp_path: Path, new_walk: NewWalk, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> str:
    """A home in which the demo has run, MLflow left out."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    walk = new_walk(recipe)
    fake_stages.walk_all(walk)
    walk.where.recipe.write_text(recipe.model_dump_json())
    return walk.where.home


def test_models_and_status(home: str) -> None:
    models = json.loads(rlhf("models", "--home", home, "--json").stdout)
    names = [(row["name"], row["version"]) for row in models]
    iteration = ["policy", "helpfulness-rm", "safety-rm"]
    assert names == [("base", 0), ("sft", 0), *((n, v) for v in (1, 2) for n in iteration)]
    assert all(Path(row["path"], "content.json").is_file() for row in models)
    assert all(len(row["digest"]) == 64 for row in models)
    status = json.loads(rlhf("status", "--home", home, "--json").stdout)
    assert {row["state"] for row in status} == {"done"}
    assert "v2" in rlhf("status", "--home", home).output


def test_one_stage_alone(home: str) -> None:
    result = rlhf("stage", "reward_model", "--version", "2", "--force", "--home", home)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("the same digests as before: everything downstream stays valid") == 2
    assert "stale" not in result.stdout
    steps = json.loads(rlhf("plan", "--home", home, "--json").stdout)["steps"]
    assert {step["action"] for step in steps} == {"reuse"}
    one = rlhf(
        *("stage", "reward_model", "--version", "2", "--domain", "safety", "--home", home),
        *("--set", "safety_rm.num_epochs=7"),
    )
    assert "stale: v2/ppo, since v2/reward_model-safety:model is another one now" in one.stdout


def test_the_same_digests_validate_nothing_that_was_stale_before(home: str) -> None:
    stage = ("stage", "reward_model", "--version", "2", "--domain", "safety", "--home", home)
    other = ("--set", "safety_rm.num_epochs=7")
    rlhf(*stage, *other)
    again = rlhf(*stage, *other, "--force")
    assert "the same digests as before\n" in again.stdout
    assert "stays valid" not in again.stdout
    assert "stale: v2/ppo" in again.stdout
    cascade = rlhf(*stage, *other, "--cascade")
    assert "v2/evaluate:win_rates" in cascade.stdout
    assert "everything downstream stays valid" in rlhf(*stage, *other, "--force").stdout


def test_a_forced_node_that_there_is_not_is_refused(tmp_path: Path) -> None:
    for command in ("run", "plan"):
        refused = paragraph(rlhf(command, "--recipe", "demo", "--force", "pppo"))
        assert "no node 'pppo'. Take one of sandbox_world, " in refused
    assert not (tmp_path / "rlhf_home").exists()


def test_a_home_holds_one_product(home: str) -> None:
    for command in (("stage", "sft"), ("status",), ("models",)):
        of_another = rlhf(*command, "--recipe", "real", "--home", home)
        assert "holds the iterations of sandbox" in paragraph(of_another)
        assert rlhf(*command, "--recipe", "demo", "--home", home).exit_code == 0


def test_a_home_is_for_one_process_at_a_time(home: str) -> None:
    with Store.open(home).lock("runs"):
        for command in (("demo",), ("run",), ("stage", "sft")):
            refused = paragraph(rlhf(*command, "--home", home))
            assert f"held by process {os.getpid()} on" in refused
        assert rlhf("status", "--home", home).exit_code == 0
    assert rlhf("stage", "sft", "--home", home).exit_code == 0


def test_the_report(home: str, new_walk: NewWalk, recipe: Recipe) -> None:
    walk = new_walk(recipe)
    console = Console(width=240, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        report.print_report(recipe, walk.store, walk.ledger, walk.where, "p.db", console)
    text = console.export_text()
    assert "0.700 [0.600, 0.800]" in text
    assert "0.750 [0.660, 0.820] n=100" in text
    assert "8.000 before, 2.500 after" in text
    assert "Gold safety of v2 over SFT: +0.200 (95 % interval +0.100 to +0.300)" in text
    assert "Prefect database: p.db" in text
    assert "rlhf models" in text


def test_ingesting_one_file(tmp_path: Path) -> None:
    (tmp_path / "qa.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    result = rlhf("ingest", "qa.jsonl", "--role", "demonstrations", "--format", "qa")
    assert result.exit_code == 0, result.output
    assert "demonstrations: " in result.stdout
    wrong = rlhf("ingest", "qa.jsonl", "--role", "demonstrations", "--format", "hh")
    assert "demonstrations come in the formats" in paragraph(wrong)
    assert "There is no file" in paragraph(
        rlhf("ingest", "no.jsonl", "--role", "demonstrations", "--format", "qa")
    )
