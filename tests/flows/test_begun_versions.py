"""Versions that have begun beyond the recipe's num_versions: the weekly flow goes on and on."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_stages import SHORT, walk_all
from typer.testing import CliRunner, Result

from data_contracts.errors import UserError
from flows.cascade import rerun
from flows.cli import app
from flows.iteration import _begin
from flows.occupied import claim
from flows.pins import pin
from flows.planner import as_far_as_begun, changed_downstream
from flows.recipe import Recipe, load_recipe
from flows.runner import Walk, find_nodes, run_node

NewWalk = Callable[..., Walk]
ONE = [*SHORT, "num_versions=1"]


@pytest.fixture
def two_begun(new_walk: NewWalk, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """A walk with a recipe of one version over a home in which two have run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    walk = new_walk(recipe)
    walk_all(walk)
    for version in (1, 2):
        pin(walk, version)
    return new_walk(load_recipe("demo", ONE))


def rlhf(walk: Walk, *arguments: str) -> Result:
    command = [*arguments, "--home", walk.where.home]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200"})


def versions_of_home(walk: Walk) -> int:
    return load_recipe(str(walk.where.recipe)).num_versions


def test_a_recipe_goes_as_far_as_what_has_begun(new_walk: NewWalk, two_begun: Walk):
    assert as_far_as_begun(two_begun.recipe, two_begun.ledger).num_versions == 2
    five = load_recipe("demo")
    assert as_far_as_begun(five, two_begun.ledger) == five


def test_nothing_begun_is_nothing_more(new_walk: NewWalk):
    none = load_recipe("demo", ["num_versions=0"])
    assert as_far_as_begun(none, new_walk(none).ledger) == none


def test_a_cascade_reaches_every_version_that_has_begun(new_walk: NewWalk, two_begun: Walk):
    other = load_recipe("demo", [*ONE, "safety_rm.num_epochs=9"])
    walk = new_walk(other)
    wanted = find_nodes(other, "reward_model-safety", 1)
    (done,) = rerun(wanted, walk, force=False)
    assert "v2/evaluate" in map(str, done.stale)
    found = list(rerun(wanted, walk, force=False, cascade=True))
    assert str(found[-1].result.node.id) == "v2/evaluate"
    assert not changed_downstream(other, walk.store, walk.ledger)


def test_a_stage_of_a_later_version_runs_alone(two_begun: Walk):
    claim(two_begun.where, two_begun.recipe)
    result = rlhf(two_begun, "stage", "ppo", "--version", "2", "--force")
    assert result.exit_code == 0, result.output
    assert "v2/ppo:model" in result.stdout
    refused = rlhf(two_begun, "stage", "ppo", "--version", "3")
    assert "There is no ppo in version 3" in refused.stderr


def test_the_flow_finds_a_stage_of_a_later_version(
    two_begun: Walk, monkeypatch: pytest.MonkeyPatch
):
    from flows import rerun as flow

    monkeypatch.setattr(flow, "open_walk", lambda recipe, home: two_begun)
    monkeypatch.setattr(flow, "publish_board", lambda version, results: None)
    monkeypatch.setattr(flow, "publish_overview", lambda walk: None)
    monkeypatch.setattr(flow, "run_task", lambda node, walk, force: run_node(node, walk))
    made = flow.rerun_stage.fn(2, flow.StageName.ppo, {}, "", force=False)
    assert made == {"v2/ppo": "same"}


def test_up_keeps_the_versions_that_have_begun(two_begun: Walk, monkeypatch: pytest.MonkeyPatch):
    from flows.standing.up import Servers

    monkeypatch.setattr(Servers, "run", lambda self, announce: None)
    file = Path("mine.yaml")
    file.write_text("extends: demo\nnum_versions: 1\n")
    ports = []
    for option in ("--prefect-port", "--mlflow-port", "--annotation-port"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports += [option, str(free.getsockname()[1])]
    result = rlhf(two_begun, "up", "--recipe", str(file), *ports)
    assert result.exit_code == 0, result.output
    assert versions_of_home(two_begun) == 2


def test_an_iteration_cannot_skip_versions(two_begun: Walk):
    claim(two_begun.where, two_begun.recipe)
    with pytest.raises(UserError, match=r"goes on from RLHF-V49, .* The next one is RLHF-V3"):
        _begin(two_begun, 50, [])
    assert versions_of_home(two_begun) == 1
    _begin(two_begun, 3, ["v3/ppo"])
    assert versions_of_home(two_begun) == 3


def test_an_earlier_iteration_again_leaves_the_later_ones_to_the_home(two_begun: Walk):
    _begin(two_begun, 1, [])
    assert versions_of_home(two_begun) == 2


def test_an_iteration_refuses_unknown_nodes_before_it_claims_the_home(two_begun: Walk):
    with pytest.raises(UserError, match="no node 'v3/ppo'"):
        _begin(two_begun, 2, ["v3/ppo"])
    assert not two_begun.where.recipe.exists()
