"""`rlhf stop`: a run ends where it can go on, and nothing is asked of the next one."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_stages import walk_all
from typer.testing import CliRunner, Result

from data_contracts.ledger import Ledger
from data_contracts.store import Store
from flows.cli import app
from flows.occupied import occupied
from flows.recipe import load_recipe
from flows.runner import Walk
from stages.runtime import stopping
from stages.runtime.stopping import Stopped

NewWalk = Callable[..., Walk]


def rlhf(*arguments: str, home: Path) -> Result:
    return CliRunner().invoke(app, [*arguments, "--home", str(home)])


def shows_no_more_signs(work: Path) -> bool:
    """Whether the third stage has shown all its signs of progress."""
    shown = [json.loads(path.read_text()) for path in work.glob("*/attempt-1/progress.json")]
    return len(shown) == 3 and all(content["done"] == 3 for content in shown)


def test_a_run_ends_between_two_stages_and_goes_on(
    new_walk: NewWalk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that shows no sign of life ends first: what it has made is kept."""
    monkeypatch.setenv("FAKE_FAIL", "tokenizer=slow")
    walk = new_walk(load_recipe("demo", ["num_versions=0"]))
    ended: list[Exception] = []

    def run() -> None:
        with occupied(walk.store):
            try:
                walk_all(walk)
            except Stopped as error:
                ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    home = tmp_path / "home"
    ledger = Ledger(Store.open(home))
    while not shows_no_more_signs(home / "work"):
        thread.join(0.02)
    result = rlhf("stop", home=home)
    thread.join()
    assert result.exit_code == 0, result.output
    assert "stopped: process" in result.stdout
    (error,) = ended
    assert "Stopped on request, before base/tokenize_corpus" in str(error)
    assert ledger.head(0, "tokenizer")

    again = new_walk(walk.recipe)
    with occupied(again.store):
        results = walk_all(again)
    assert [r.reused for r in results] == [True, True, True, False, False, False]


def test_a_command_that_was_stopped_says_so_and_is_no_error_of_the_user(
    fakes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "forget", lambda work: None)
    home = tmp_path / "home"
    home.mkdir()
    stopping.ask(home)
    result = rlhf("stage", "sandbox_world", "--recipe", "demo", home=home)
    assert result.exit_code == 130
    assert result.stderr == (
        "Stopped on request, before base/sandbox_world. The same command goes on from there.\n"
    )


def test_nothing_to_stop(tmp_path: Path) -> None:
    home = tmp_path / "home"
    Store.open(home)
    result = rlhf("stop", home=home)
    assert (result.exit_code, result.stdout) == (0, f"Nothing is at work in {home}\n")
    assert not stopping.is_asked(home)


def test_waiting_for_the_end_has_an_end(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Store.open(home).lock("runs"):
        result = rlhf("stop", "--wait-minutes", "0", home=home)
    assert result.exit_code == 2
    assert "has not ended after 0 minutes. It stops after the step" in result.stderr


def test_a_timeout_for_no_stage_is_refused() -> None:
    result = CliRunner().invoke(
        app, ["plan", "--recipe", "demo", "--set", "launch.timeout_minutes.ppp=3"]
    )
    assert result.exit_code == 2
    assert "launch.timeout_minutes: there is no stage ppp" in result.stderr
    launch = load_recipe("demo", ["launch.timeout_minutes.ppo=2", "launch.max_retries=5"]).launch
    assert (launch.of("ppo").timeout_seconds, launch.of("sft").timeout_seconds) == (120, None)
    assert (launch.of("ppo").max_retries, launch.of("ingest").uses_gpus) == (5, False)
