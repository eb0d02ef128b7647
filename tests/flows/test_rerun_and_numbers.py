"""Numbers of scheduled iterations, pinned inputs, and what a cascade runs."""

import uuid
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_stages import SHORT, walk_all
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType

from data_contracts.ledger import Ledger
from data_contracts.store import Store
from flows.cascade import rerun
from flows.graph import nodes
from flows.node import Node, NodeId, Output
from flows.numbering import take_number, week_of
from flows.pins import pin, read_pins
from flows.planner import changed_downstream
from flows.recipe import Recipe, load_recipe
from flows.runner import NodeResult, Walk, find_nodes, run_node

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


NINE_EPOCHS = [*SHORT, "safety_rm.num_epochs=9"]


def cascaded(walk: Walk, name: str, version: int, *, force: bool = False) -> list[str]:
    """The nodes that a cascade runs, by name."""
    wanted = find_nodes(walk.recipe, name, version)
    return [str(d.result.node.id) for d in rerun(wanted, walk, force=force, cascade=True)]


def test_a_cascade_may_come_after_the_stage_alone(new_walk: NewWalk, recipe: Recipe):
    begun(new_walk, recipe)
    other = load_recipe("demo", NINE_EPOCHS)
    wanted = find_nodes(other, "reward_model-safety", 1)
    list(rerun(wanted, new_walk(other), force=False))
    walk = new_walk(other)
    ran = cascaded(walk, "reward_model-safety", 1)
    assert ran[:3] == ["v1/reward_model-safety", "v1/rejection_sampling", "v1/evaluate"]
    assert ran[-1] == "v2/evaluate"
    assert not changed_downstream(other, walk.store, walk.ledger)
    model = walk.resolve(Output(NodeId(1, "rejection_sampling"), "model"))
    assert read_pins(walk.store, 2)["v1/rejection_sampling:model"] == model
    # and then there is nothing left to do
    assert cascaded(new_walk(other), "reward_model-safety", 1) == ran[:1]


@pytest.mark.parametrize("force", [False, True], ids=["", "by force"])
@pytest.mark.parametrize("place", ["v1/rejection_sampling", "v2/sample_pairs", "v2/ppo"])
def test_a_cascade_that_breaks_off_is_finished(
    new_walk: NewWalk, recipe: Recipe, place: str, force: bool
):
    begun(new_walk, recipe)
    other = load_recipe("demo", NINE_EPOCHS)

    def run(node: Node, walk: Walk, force: bool) -> NodeResult:
        if str(node.id) == place:
            raise KeyboardInterrupt
        return run_node(node, walk, force=force)

    wanted = find_nodes(other, "reward_model-safety", 1)
    with pytest.raises(KeyboardInterrupt):
        list(rerun(wanted, new_walk(other), force=force, cascade=True, run=run))
    walk = new_walk(other)
    ran = cascaded(walk, "reward_model-safety", 1, force=force)
    assert ran[:2] == ["v1/reward_model-safety", place], "what is done is not run again"
    assert not changed_downstream(other, walk.store, walk.ledger)


def test_a_cascade_goes_on_with_what_has_never_run_in_its_version(
    new_walk: NewWalk, recipe: Recipe
):
    walk = new_walk(recipe)
    for node in nodes(recipe):
        if node.id.name == "rejection_sampling":
            break
        run_node(node, walk)
    pin(walk, 1)
    assert cascaded(new_walk(recipe), "reward_model-safety", 1) == [
        "v1/reward_model-safety",
        "v1/rejection_sampling",
        "v1/evaluate",
    ]


def test_a_cascade_follows_files_by_their_digests(new_walk: NewWalk, recipe: Recipe):
    begun(new_walk, recipe)
    assert cascaded(new_walk(recipe), "sandbox_world", 0, force=True) == ["base/sandbox_world"]
    other = load_recipe("demo", [*SHORT, "world.num_documents=7"])
    list(rerun(find_nodes(other, "sandbox_world", 0), new_walk(other), force=False))
    ran = cascaded(new_walk(other), "sandbox_world", 0)
    assert ran == ["base/sandbox_world", "base/ingest"], "whose fake tables are what they were"
    assert cascaded(new_walk(other), "sandbox_world", 0) == ran[:1]


def test_a_retry_does_not_make_again_what_its_run_has_made(
    new_walk: NewWalk, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
):
    from flows import rerun as flow
    from flows import tasks as flow_tasks

    begun(new_walk, recipe)
    tasks = [("reward_model-safety", StateType.COMPLETED), ("rejection_sampling", StateType.FAILED)]
    run_id = str(uuid.uuid4())
    forced: list[tuple[str, list[str]]] = []

    class Client(nullcontext[Any]):
        def __enter__(self) -> Any:
            return self

        def read_task_runs(self, *, flow_run_filter: FlowRunFilter) -> list[Any]:
            assert flow_run_filter.id is not None
            assert [str(run) for run in flow_run_filter.id.any_ or []] == [run_id]
            return [SimpleNamespace(name=name, state_type=state) for name, state in tasks]

    def run_task(node: Node, walk: Walk, force: list[str]) -> NodeResult:
        forced.append((str(node.id), force))
        return run_node(node, walk, force=bool(force))

    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", run_id)
    monkeypatch.setattr(flow_tasks, "get_client", lambda sync_client: Client())
    monkeypatch.setattr(flow, "open_walk", lambda _, home: new_walk(recipe))
    monkeypatch.setattr(flow, "run_task", run_task)
    monkeypatch.setattr(flow, "publish_board", lambda version, results: None)
    monkeypatch.setattr(flow, "publish_overview", lambda walk: None)

    def again(name: str) -> dict[str, str]:
        forced.clear()
        return flow.rerun_stage.fn(1, flow.StageName(name), {}, "", cascade=True)

    assert again("reward_model-safety") == {"v1/reward_model-safety": "same"}
    assert forced == [("v1/reward_model-safety", [])]
    again("rejection_sampling")
    assert forced == [("v1/rejection_sampling", ["v1/rejection_sampling"])], "it had failed"


def test_a_retried_iteration_does_not_force_again_what_it_has_made(
    new_walk: NewWalk, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
):
    from flows import iteration as flow

    walk = begun(new_walk, recipe)
    forced: dict[str, bool] = {}

    def run_task(node: Node, walk: Walk, force: list[str]) -> NodeResult:
        forced[node.id.name] = bool(force)
        return run_node(node, walk, force=False)

    monkeypatch.setattr(flow, "run_task", run_task)
    monkeypatch.setattr(flow, "finished_tasks", lambda: {"rejection_sampling"})
    for name in ("publish_board", "publish_overview", "pass_gates", "pin"):
        monkeypatch.setattr(flow, name, lambda *_: None)
    flow._walk_version(walk, 1, ["v1/rejection_sampling", "v1/evaluate"], {})
    assert not forced["rejection_sampling"]
    assert forced["evaluate"]


def test_the_form_offers_every_node():
    from flows.rerun import StageName

    everything = ["student.pretrain.model.dim=64", "gatt_from_version=2"]
    everything.append("safety_distillation_from_version=2")
    everything += [f"{s}.max_new_tokens=40" for s in ("ghost_attention", "safety_distillation")]
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
