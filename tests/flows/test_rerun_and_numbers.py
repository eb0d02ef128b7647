"""Numbers of scheduled iterations, pinned inputs, and what a cascade runs."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fake_stages import SHORT, walk_all

from data_contracts.ledger import Ledger
from data_contracts.store import Store
from flows.cascade import rerun
from flows.graph import nodes
from flows.numbering import take_number, week_of
from flows.pins import pin, read_pins
from flows.recipe import Recipe, load_recipe
from flows.runner import Walk, find_nodes

NewWalk = Callable[..., Walk]
MONDAY = datetime(2026, 11, 23, 3, tzinfo=UTC)


def test_numbers_go_on_where_the_ledger_ends(new_walk: NewWalk, recipe: Recipe):
    walk = new_walk(recipe)
    store, ledger = walk.store, walk.ledger
    assert take_number(store, ledger, "a", MONDAY) == (1, True)
    assert take_number(store, ledger, "b", MONDAY) == (1, True), "not complete: go on with it"
    walk_all(walk)
    assert take_number(store, ledger, "a", MONDAY) == (1, True), "a retry keeps its number"
    assert take_number(store, ledger, "c", MONDAY) == (1, False), "the week has its iteration"
    next_week = MONDAY + timedelta(days=7)
    assert take_number(store, ledger, "d", next_week) == (3, True)
    assert take_number(store, ledger, "d", next_week + timedelta(days=30)) == (3, True)


def test_a_number_is_given_once_to_runs_that_start_together(tmp_path: Path):
    from concurrent.futures import ThreadPoolExecutor

    def take(run: int) -> tuple[int, bool]:
        store = Store.open(tmp_path)
        return take_number(store, Ledger(store), str(run), MONDAY)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(take, range(8))) == {(1, True)}
    content = (tmp_path / "numbers.json").read_text()
    assert content.count('"version"') == 8


def test_weeks_are_isos():
    assert week_of(datetime(2027, 1, 3, tzinfo=UTC)) == "2026-W53"
    assert week_of(datetime(2027, 1, 4, tzinfo=UTC)) == "2027-W01"


def begun(new_walk: NewWalk, recipe: Recipe) -> Walk:
    """A walk of a whole run, whose iterations have pinned what they read."""
    walk = new_walk(recipe)
    walk_all(walk)
    for version in (1, 2):
        pin(walk, version)
    return walk


def test_a_rerun_reads_what_its_iteration_was_begun_with(new_walk: NewWalk, recipe: Recipe):
    walk = begun(new_walk, recipe)
    old = walk.outputs["base/sft:model"]
    other = load_recipe("demo", [*SHORT, "sft.num_epochs=7"])
    (sft,) = rerun(find_nodes(other, "sft", None), new_walk(other), force=False)
    assert not sft.is_same
    again = list(rerun(find_nodes(other, "reward_model", 2), new_walk(other), force=True))
    assert all(done.is_same for done in again)
    assert {done.result.manifest.inputs["init_from"] for done in again} == {old}
    assert read_pins(walk.store, 2)["base/sft:model"] == old


def test_a_cascade_goes_as_far_as_digests_change(new_walk: NewWalk, recipe: Recipe):
    begun(new_walk, recipe)
    (same,) = rerun(
        find_nodes(recipe, "reward_model-safety", 1), new_walk(recipe), force=True, cascade=True
    )
    assert same.is_same
    other = load_recipe("demo", [*SHORT, "safety_rm.num_epochs=9"])
    walk = new_walk(other)
    wanted = find_nodes(other, "reward_model-safety", 1)
    found = list(rerun(wanted, walk, force=False, cascade=True))
    ran = [str(done.result.node.id) for done in found]
    assert ran[:3] == ["v1/reward_model-safety", "v1/rejection_sampling", "v1/evaluate"]
    # the second version's policies come from the first one's; its preferences do, too
    assert "v2/sample_pairs" in ran
    assert "v1/reward_model-helpfulness" not in ran
    assert found[0].stale
    assert not found[-1].stale


def test_a_cascade_leaves_later_versions_alone_that_have_not_begun(
    new_walk: NewWalk, recipe: Recipe
):
    one = load_recipe("demo", ["num_versions=1"])
    walk_all(new_walk(one))
    other = load_recipe("demo", [*SHORT, "safety_rm.num_epochs=9"])
    found = rerun(
        find_nodes(other, "reward_model-safety", 1), new_walk(other), force=False, cascade=True
    )
    assert {done.result.node.id.version for done in found} == {1}


def test_the_form_offers_every_node():
    from flows.rerun import StageName

    everything = ["student.pretrain.model.dim=16", "gatt_from_version=2"]
    everything.append("safety_distillation_from_version=2")
    recipes = [load_recipe("real"), load_recipe("demo", everything)]
    known = {node.id.name for recipe in recipes for node in nodes(recipe)}
    assert {stage.value for stage in StageName} == known


@pytest.mark.parametrize("damage", ["{", '{"outputs": {"a": 1}}'], ids=["cut off", "no digest"])
def test_damaged_pins_are_one_paragraph(damage: str, tmp_path: Path):
    store = Store.open(tmp_path)
    assert read_pins(store, 2) == {}
    store.write("pins/v2.json", damage.encode())
    with pytest.raises(ValueError, match=r"pins/v2.json .* is damaged"):
        read_pins(store, 2)
