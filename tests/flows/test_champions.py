"""Who becomes the champion: after PPO is dropped, after MLflow was away, and by a person's word."""

import hashlib
from collections.abc import Callable

import pytest
from fake_stages import SHORT, walk_all
from typer.testing import CliRunner

from flows.cascade import rerun
from flows.cli import app
from flows.gates import Override, Verdict, catch_up, read_verdict, settle
from flows.models import list_models, model_digests
from flows.occupied import claim
from flows.override import Decision, decide
from flows.recipe import Recipe, load_recipe
from flows.runner import Walk, find_nodes

NewWalk = Callable[..., Walk]
ONE = ["num_versions=1", "ppo_from_version=2"]
NAMES = {"policy", "helpfulness-rm", "safety-rm"}
YES = Decision(policy=True, by="Ann", reason="a demo")


def champions(walk: Walk) -> dict[str, str]:
    """Digest of each name's champion."""
    client = walk.tracker._client
    return {
        name: client.get_model_version_by_alias(name, "champion").tags["rlhf.digest"]
        for name in NAMES
        if client.search_registered_models(f"name = '{name}'")
        and "champion" in client.get_registered_model(name).aliases
    }


def statuses(walk: Walk) -> dict[str, str]:
    """Status of each run by its name."""
    return {str(run.info.run_name): run.info.status for run in walk.tracker._search("")}


def test_a_dropped_ppo_model_is_the_policy_no_more(new_walk: NewWalk) -> None:
    with_ppo = load_recipe("demo", ["num_versions=1", "ppo_from_version=1"])
    walk = new_walk(with_ppo, tracked=True)
    claim(walk.where, with_ppo)
    with walk.tracker:
        walk_all(walk)
        settle(walk, 1)
    of_ppo = walk.outputs["v1/ppo:model"].digest
    of_sampling = walk.outputs["v1/rejection_sampling:model"].digest
    assert champions(walk)["policy"] == of_ppo

    def listed(walk: Walk) -> str:
        (policy,) = [m for m in list_models(walk.store, walk.ledger) if m.name == "policy"]
        return policy.digest

    assert listed(walk) == of_ppo
    without = load_recipe("demo", ONE)
    again = new_walk(without, tracked=True)
    claim(again.where, without)
    with again.tracker:
        results = {r.node.id.name: r for r in walk_all(again)}
        verdict = settle(again, 1)
    assert results["rejection_sampling"].reused, "a new run would be registered anyway"
    assert "policy" in verdict.promoted()
    assert verdict.digests["policy"] == of_sampling
    assert champions(again)["policy"] == of_sampling
    assert listed(again) == of_sampling
    again.where.recipe.unlink()
    assert listed(again) == of_ppo, "only the ledger is left to say"


def test_a_policy_is_listed_while_the_recipes_ppo_has_not_run(new_walk: NewWalk) -> None:
    walk = new_walk(load_recipe("demo", ONE))
    walk_all(walk)
    claim(walk.where, load_recipe("demo", ["num_versions=1", "ppo_from_version=1"]))
    names = [m.name for m in list_models(walk.store, walk.ledger) if m.version == 1]
    assert names == ["policy", "helpfulness-rm", "safety-rm"]


def test_the_champion_moves_when_mlflow_is_back(new_walk: NewWalk) -> None:
    walk = new_walk(load_recipe("demo", ONE), tracked=True)
    with walk.tracker:
        walk_all(walk)
        walk.tracker.give_up(ConnectionError("away"))
        verdict = settle(walk, 1)
        assert champions(walk) == {}
    assert verdict.digests.keys() == NAMES
    assert champions(walk) == verdict.digests


def test_the_next_iteration_catches_up_on_the_ones_before(new_walk: NewWalk) -> None:
    walk = new_walk(load_recipe("demo", ONE))  # MLflow is away to the end
    walk_all(walk)
    verdict = settle(walk, 1)
    following = new_walk(
        load_recipe("demo", ["num_versions=2", "ppo_from_version=2"]), tracked=True
    )
    catch_up(following, 2)
    assert not following.where.mlflow_database.exists(), "no iteration waits for it"
    with pytest.raises(RuntimeError), following.tracker:
        raise RuntimeError
    assert champions(following) == verdict.digests
    assert set(statuses(following).values()) == {"FINISHED"}, "its own failure is not theirs"
    assert statuses(following).keys() >= {"Base", "RLHF-V1", "evaluate", "pretrain"}

    # a person who sets a champion back is not overruled by next week's run
    following.tracker._client.delete_registered_model_alias("policy", "champion")
    later = new_walk(following.recipe, tracked=True)
    catch_up(later, 2)
    with later.tracker:
        pass
    assert champions(later).keys() == NAMES - {"policy"}


def test_what_was_made_again_and_not_judged_is_not_promoted_late(new_walk: NewWalk) -> None:
    walk = new_walk(load_recipe("demo", ONE))
    walk_all(walk)
    settle(walk, 1)
    other = load_recipe("demo", [*ONE, "safety_rm.num_epochs=9"])
    list(rerun(find_nodes(other, "reward_model-safety", 1), new_walk(other), force=False))
    following = new_walk(other, tracked=True)
    catch_up(following, 2)
    with following.tracker:
        pass
    assert champions(following).keys() == NAMES - {"safety-rm"}


def test_a_manifest_that_its_stage_cannot_read_any_more_holds_nothing_up(
    new_walk: NewWalk,
) -> None:
    walk = new_walk(load_recipe("demo", ONE))
    first, *others = walk_all(walk)
    old = first.manifest.model_copy(update={"config": {"given": "up"}})
    following = new_walk(walk.recipe, tracked=True)
    following.tracker.remember(first.node, old, following.store)
    following.tracker.remember(others[0].node, others[0].manifest, following.store)
    with following.tracker:
        pass
    assert not following.tracker.broken
    assert statuses(following) == {"Base": "FINISHED", "ingest": "FINISHED"}


def override_of(walk: Walk) -> Override:
    content = walk.store.read("gates/v1-override.json")
    assert content is not None
    return Override.model_validate_json(content)


def test_an_override_says_only_what_it_moved(new_walk: NewWalk, recipe: Recipe) -> None:
    walk = new_walk(recipe, tracked=True)
    walk_all(walk)
    judged = settle(walk, 1)
    assert decide(walk, judged, YES).message == "Champions by Ann: policy"
    assert override_of(walk).promoted == {"policy": judged.digests["policy"]}

    second = {"policy": model_digests(recipe, walk.ledger, 2)["policy"]}
    walk.tracker.promote(2, second)
    both = YES.model_copy(update={"safety_rm": True})
    state = decide(walk, judged, both)
    assert state.message == "Champions by Ann: safety-rm; policy: v2 is champion already"
    assert champions(walk)["policy"] == second["policy"]
    assert override_of(walk).promoted == {"safety-rm": judged.digests["safety-rm"]}
    assert override_of(walk).kept == {"policy": "v2 is champion already"}

    nobody = YES.model_copy(update={"policy": False})
    assert decide(walk, judged, nobody).message == "Champions by Ann: unmoved"
    assert override_of(walk).promoted == {}


def test_an_override_of_a_model_that_was_not_judged_is_superseded(new_walk: NewWalk) -> None:
    walk = new_walk(load_recipe("demo", ONE), tracked=True)
    walk_all(walk)
    judged = settle(walk, 1)
    other = load_recipe("demo", [*ONE, "safety_rm.num_epochs=9"])
    later = new_walk(other, tracked=True)
    list(rerun(find_nodes(other, "reward_model-safety", 1), later, force=False))
    state = decide(later, judged, YES.model_copy(update={"safety_rm": True}))
    assert state.name == "Superseded"
    assert "safety-rm of RLHF-V1: not what was judged" in str(state.message)
    assert champions(later) == judged.digests
    assert later.store.read("gates/v1-override.json") is None
    assert decide(later, judged, YES).name == "Completed", "the policy is the one that was judged"


def test_an_override_waits_for_mlflow_and_for_the_model_to_be_in_it(new_walk: NewWalk) -> None:
    untold = new_walk(load_recipe("demo", ONE))
    walk_all(untold)
    judged = settle(untold, 1)
    for walk, why in (
        (untold, "MLflow does not answer"),
        (new_walk(untold.recipe, tracked=True), "policy of RLHF-V1: not in MLflow"),
    ):
        state = decide(walk, judged, YES)
        assert state.is_failed()
        assert str(state.message).startswith(why)
        assert walk.store.read("gates/v1-override.json") is None


def test_verdicts_from_before_they_named_models_still_hold(new_walk: NewWalk) -> None:
    walk = new_walk(load_recipe("demo", ONE), tracked=True)
    walk_all(walk)
    content = b'{"version":1,"gates":[]}'
    walk.store.write("gates/v1.json", content)
    old = read_verdict(walk.store, 1)
    assert old.digest() == hashlib.sha256(content).hexdigest()[:16], "by which a person was asked"
    assert decide(walk, old, YES).message == "Champions by Ann: policy"
    named = Verdict(version=1, gates=(), digests={"policy": "0" * 64})
    assert named.digest() == old.digest(), "judged again it is the same question"


def test_a_stage_from_a_shell_through_evaluation_judges_again(new_walk: NewWalk) -> None:
    recipe = load_recipe("demo", SHORT)
    walk = new_walk(recipe, tracked=True)
    with walk.tracker:
        walk_all(walk)
    claim(walk.where, recipe)
    stage = ["stage", "--home", walk.where.home, "--version", "1"]
    result = CliRunner().invoke(app, [*stage, "sample_pairs", "--force", "--cascade"])
    assert result.exit_code == 0, result.output
    assert walk.store.read("gates/v1.json") is None, "nothing has changed, nothing is judged"
    setting = ["--set", "safety_rm.num_epochs=9"]
    result = CliRunner().invoke(app, [*stage, "reward_model-safety", "--cascade", *setting])
    assert result.exit_code == 0, result.output
    assert "Gates of v1 passed by: helpfulness-rm, safety-rm, policy" in result.output
    assert champions(walk)["safety-rm"] == read_verdict(walk.store, 2).digests["safety-rm"]
    assert read_verdict(walk.store, 1).digests.keys() == NAMES
