"""The board of `rlhf status --watch`."""

import json
import time
from collections.abc import Callable

import pytest
from fake_stages import walk_all
from rich.console import Console

from flows.live_status import Board, watch
from flows.planner import plan
from flows.recipe import Recipe, load_recipe
from flows.runner import Walk

NewWalk = Callable[..., Walk]


def test_what_is_done_running_and_to_do(
    new_walk: NewWalk, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
):
    walk = new_walk(load_recipe("demo", ["num_versions=1"]))
    walk_all(walk)
    (sampling,) = (
        step
        for step in plan(recipe, walk.store, walk.ledger)
        if str(step.node.id) == "v2/sample_pairs"
    )
    assert sampling.key is not None
    now = time.time()
    progress = {"done": 30, "total": 40, "unit": "step", "time": now}
    attempt = walk.store.new_attempt(sampling.key)
    (attempt / "progress.json").write_text(json.dumps(progress))

    board = Board(recipe, walk.store, walk.ledger)
    cells = {(cell.version, cell.node): cell for cell in board.cells(now)}
    assert cells[1, "evaluate"].state == "done"
    assert cells[2, "sample_pairs"].state == "running"
    assert cells[2, "sample_pairs"].detail == "75 % of 40 steps"
    assert cells[2, "ppo"].state == "to do"
    later = {(cell.version, cell.node): cell for cell in board.cells(now + 600)}
    assert later[2, "sample_pairs"].state == "to do"

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.live_status.time.sleep", interrupt)
    console = Console(width=160, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file, pytest.raises(KeyboardInterrupt):
        watch(board, console)
    assert "75 % of 40 steps" in console.export_text()
