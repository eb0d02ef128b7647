import shutil
import sys
from collections.abc import Callable

import pytest
from fake_stages import SHORT, walk_all

from data_contracts import provenance
from data_contracts.errors import UserError
from flows import planner
from flows.cascade import rerun
from flows.node import NodeId
from flows.planner import Step, plan
from flows.recipe import Recipe, load_recipe
from flows.runner import Walk, find_nodes

NewWalk = Callable[..., Walk]


def steps(walk: Walk, recipe: Recipe, *force: str) -> dict[str, Step]:
    return {str(s.node.id): s for s in plan(recipe, walk.store, walk.ledger, force)}


def runs(planned: dict[str, Step]) -> list[str]:
    return [name for name, step in planned.items() if step.action == "run"]


def test_nothing_has_run(recipe: Recipe) -> None:
    planned = plan(recipe, None, None)
    assert {(step.action, step.reason) for step in planned} == {("run", "never run")}
    assert [str(s.node.id) for s in planned if s.key] == ["base/sandbox_world"]


def test_what_must_be_supplied_is_said_without_files() -> None:
    planned = plan(load_recipe("70b"), None, None)
    assert "names no sources" in planned[0].missing
    assert not any(step.missing for step in planned[1:])


def test_after_a_run_everything_is_reused(new_walk: NewWalk, recipe: Recipe) -> None:
    walk = new_walk(recipe)
    results = walk_all(walk)
    assert not any(result.reused for result in results)
    planned = steps(walk, recipe)
    assert {s.action for s in planned.values()} == {"reuse"}
    assert not any(s.code_changed for s in planned.values())
    assert all(result.reused for result in walk_all(new_walk(recipe)))


def test_a_changed_setting_runs_its_stage_and_what_follows(
    new_walk: NewWalk, recipe: Recipe
) -> None:
    walk = new_walk(recipe)
    walk_all(walk)
    planned = steps(
        walk, load_recipe("demo", [*SHORT, "ppo.kl_beta=0.02", "safety_rm.num_epochs=9"])
    )
    assert planned["v1/reward_model-safety"].reason == "config changed: num_epochs 1 → 9"
    assert planned["v1/reward_model-helpfulness"].action == "reuse"
    assert planned["v1/rejection_sampling"].reason == (
        "input safety_rm may change: v1/reward_model-safety will run"
    )
    assert runs(planned)[-1] == "v2/evaluate"
    assert planned["v2/ppo"].key is None


def test_settings_without_meaning_change_nothing(new_walk: NewWalk, recipe: Recipe) -> None:
    walk = new_walk(recipe)
    walk_all(walk)
    changed = load_recipe("demo", [*SHORT, "ppo.micro_batch_size=1", "launch.num_processes=2"])
    assert runs(steps(walk, changed)) == []


def test_forced_nodes_are_named_by_node_stage_or_version(new_walk: NewWalk, recipe: Recipe) -> None:
    walk = new_walk(recipe)
    walk_all(walk)
    assert runs(steps(walk, recipe, "v2/evaluate")) == ["v2/evaluate"]
    assert runs(steps(walk, recipe, "ppo")) == ["v2/ppo", "v2/evaluate"]
    assert steps(walk, recipe, "reward_model")["v1/reward_model-safety"].reason == "forced"


@pytest.mark.parametrize("name", ["pppo", "v9/ppo", "v1/ppo", "base/ppo"])
def test_a_forced_node_that_there_is_not_is_refused(recipe: Recipe, name: str) -> None:
    with pytest.raises(UserError, match=f"no node '{name}'. Take one of sandbox_world, .*ppo"):
        plan(recipe, None, None, ["ppo", name])


def test_a_lost_or_damaged_output_is_made_again(new_walk: NewWalk, recipe: Recipe) -> None:
    walk = new_walk(recipe)
    results = {str(r.node.id): r.manifest for r in walk_all(walk)}
    shutil.rmtree(walk.store.local(results["v2/ppo"].outputs["model"]))
    again = new_walk(recipe)
    planned = steps(again, recipe)
    assert "output model is" in planned["v2/ppo"].reason
    assert runs(planned) == ["v2/ppo", "v2/evaluate"]
    results = walk_all(again)
    assert [str(r.node.id) for r in results if not r.reused] == ["v2/ppo"]


def test_a_new_stage_version_and_changed_code(
    new_walk: NewWalk, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = new_walk(recipe)
    walk_all(walk)
    before = sys.modules["stages.ppo"].VERSION
    monkeypatch.setattr(sys.modules["stages.ppo"], "VERSION", "next")
    monkeypatch.setattr("flows.planner.current_code", lambda stage: "other")
    planned = steps(walk, recipe)
    assert planned["v2/ppo"].reason == f"stage VERSION changed: {before} → next"
    assert planned["base/sft"].action == "reuse"
    assert planned["base/sft"].code_changed


@pytest.mark.parametrize(
    ("source", "stages"),
    [
        ("stages/ppo.py", {"ppo"}),
        ("kernels/generation.py", {"sample_pairs", "rejection_sampling", "ppo", "evaluate"}),
        ("flows/planner.py", set()),
    ],
)
def test_an_edit_is_noted_for_the_stages_that_run_it(
    new_walk: NewWalk,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    stages: set[str],
) -> None:
    walk = new_walk(recipe)
    walk_all(walk)
    as_it_is = provenance.hash_of_source
    monkeypatch.setattr(
        provenance,
        "hash_of_source",
        lambda path: "edited" if path.as_posix().endswith(source) else as_it_is(path),
    )
    monkeypatch.setattr(planner, "current_code", planner.current_code.__wrapped__)
    planned = steps(walk, recipe).values()
    assert {s.action for s in planned} == {"reuse"}
    assert {s.node.stage for s in planned if s.code_changed} == stages


def test_a_forced_rerun_with_the_same_digest_leaves_everything_valid(
    new_walk: NewWalk, recipe: Recipe
) -> None:
    walk = new_walk(recipe)
    walk_all(walk)
    again = new_walk(recipe)
    both = list(rerun(find_nodes(recipe, "reward_model", 2), again, force=True))
    assert [str(r.result.node.id) for r in both] == [
        "v2/reward_model-helpfulness",
        "v2/reward_model-safety",
    ]
    assert all(r.is_same and not r.result.reused and not r.stale for r in both)
    assert runs(steps(again, recipe)) == []


def test_a_rerun_that_differs_says_what_is_stale(new_walk: NewWalk, recipe: Recipe) -> None:
    walk_all(new_walk(recipe))
    changed = load_recipe("demo", [*SHORT, "safety_rm.num_epochs=9"])
    walk = new_walk(changed)
    (done,) = rerun(find_nodes(changed, "reward_model-safety", 2), walk, force=False)
    assert not done.is_same
    assert [str(node) for node in done.stale] == ["v2/rejection_sampling", "v2/ppo", "v2/evaluate"]
    assert done.stale[NodeId(2, "evaluate")] == ("v2/reward_model-safety:model is another one now")


def test_a_stage_alone_needs_what_it_reads(new_walk: NewWalk, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="base/sft has not run"):
        list(rerun(find_nodes(recipe, "reward_model-safety", 1), new_walk(recipe), force=False))


def test_nodes_are_found_by_stage_and_version(recipe: Recipe) -> None:
    assert [str(n.id) for n in find_nodes(recipe, "ppo", None)] == ["v2/ppo"]
    with pytest.raises(ValueError, match="Take one of sandbox_world"):
        find_nodes(recipe, "pppo", None)
    with pytest.raises(ValueError, match="Say which one with --version"):
        find_nodes(recipe, "evaluate", None)
    with pytest.raises(ValueError, match="no ppo in version 1"):
        find_nodes(recipe, "ppo", 1)
