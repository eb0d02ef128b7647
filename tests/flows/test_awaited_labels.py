"""Where labels are awaited is where the command that a run names delivers them."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import iteration, label_weeks
from flows.cli import app
from flows.environment import places
from flows.graph import version_nodes
from flows.occupied import claim
from flows.recipe import Recipe, load_recipe
from flows.runner import Walk

NewWalk = Callable[..., Walk]
Delivered = list[tuple[Path, float]]
ANNOTATIONS = "collect_preferences.method=annotations"
RELATIVE = "collect_preferences.deliveries=rlhf_home/annotation/deliveries"


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch) -> Delivered:
    """File and share held out of each delivery, which writes nothing."""
    found: Delivered = []

    def deliver(database: Any, week: int, file: Path, test_fraction: float) -> int:
        found.append((file, test_fraction))
        return 0

    monkeypatch.setattr(label_weeks, "deliver_labels", deliver)
    return found


def rlhf(command: str) -> None:
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("absolute", [False, True], ids=["relative to --data", "whole path"])
def test_the_command_that_a_run_names_delivers_where_it_waits(
    new_walk: NewWalk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    delivered: Delivered,
    absolute: bool,
) -> None:
    (tmp_path / "data").mkdir()
    folder = tmp_path / "elsewhere"
    deliveries = f"collect_preferences.deliveries={folder}" if absolute else RELATIVE
    settings = [ANNOTATIONS, deliveries, "collect_preferences.test_fraction=0.25"]
    recipe = load_recipe("demo", settings, data_dir=str(tmp_path / "data"))
    walk = new_walk(recipe)
    claim(walk.where, recipe)
    monkeypatch.setattr(iteration, "publish_comparisons", lambda *_: 0)
    (node,) = (n for n in version_nodes(recipe, 1) if n.stage == "collect_preferences")
    said = iteration._awaited(node, walk)

    (command,) = re.findall("`rlhf (annotations export [^`]*)`", said)
    rlhf(command)
    ((file, test_fraction),) = delivered
    assert file == Path(node.fixed["delivery"]["path"])
    assert f"awaited in {file}:" in said
    assert test_fraction == 0.25


def test_nothing_is_delivered_where_no_iteration_could_see_it(
    tmp_path: Path, delivered: Delivered
) -> None:
    recipe = load_recipe("demo", [ANNOTATIONS, RELATIVE], data_dir=str(tmp_path / "not-mounted"))
    home = of_home(tmp_path, recipe)
    command = ["annotations", "export", "--week", "2", "--home", home]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "lies in the folder of the source files, which is not here" in result.output
    assert delivered == []


def of_home(tmp_path: Path, recipe: Recipe | None) -> str:
    home = tmp_path / "home"
    home.mkdir()
    if recipe:
        claim(places(str(home)), recipe)
    return str(home)


@pytest.mark.parametrize("recipe", [None, load_recipe("demo")], ids=["none", "simulated"])
def test_a_home_whose_recipe_awaits_no_labels_keeps_them_itself(
    tmp_path: Path, delivered: Delivered, recipe: Recipe | None
) -> None:
    home = of_home(tmp_path, recipe)
    rlhf(f"annotations export --week 2 --home {home}")
    assert delivered == [(Path(home, "annotation/deliveries/v2.parquet"), 0.1)]


def test_options_win_over_the_recipe(tmp_path: Path, delivered: Delivered) -> None:
    home = of_home(tmp_path, load_recipe("demo", [ANNOTATIONS, RELATIVE]))
    rlhf(f"annotations export --week 1 --output x.parquet --test-fraction 0 --home {home}")
    assert delivered == [(Path("x.parquet"), 0)]
