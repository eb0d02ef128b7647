from pathlib import Path

import pytest

from data_contracts.artifacts import ArtifactRef
from data_contracts.errors import UserError
from flows.graph import nodes, policy
from flows.node import NodeId, Output
from flows.recipe import Recipe, load_recipe
from stages.importers.source import Source
from stages.ingest import IngestSettings


def names(recipe: Recipe, version: int) -> list[str]:
    return [node.id.name for node in nodes(recipe) if node.id.version == version]


def node_of(recipe: Recipe, version: int, name: str):
    return next(n for n in nodes(recipe) if n.id == NodeId(version, name))


def test_the_demos_nodes(recipe: Recipe) -> None:
    base = ["sandbox_world", "ingest", "tokenizer", "tokenize_corpus", "pretrain", "sft"]
    v1 = ["sample_pairs", "collect_preferences", "reward_model-helpfulness"]
    v1 += ["reward_model-safety", "rejection_sampling", "evaluate"]
    assert names(recipe, 0) == base
    assert names(recipe, 1) == v1
    assert names(recipe, 2) == [*v1[:-1], "ppo", "evaluate"]


def test_imported_preferences_need_no_sampling() -> None:
    recipe = load_recipe("real")
    assert "sandbox_world" not in names(recipe, 0)
    assert names(recipe, 1)[0] == "collect_preferences"


def test_the_paper_runs_ppo_at_v5_and_keeps_all_samples_from_v4() -> None:
    recipe = load_recipe("70b")
    assert [v for v in range(1, 6) if "ppo" in names(recipe, v)] == [5]
    earlier = [
        len(node_of(recipe, v, "rejection_sampling").inputs["earlier_samples"]) for v in range(1, 6)
    ]
    assert earlier == [0, 0, 0, 3, 4]
    start = node_of(recipe, 3, "rejection_sampling").inputs["start_from"]
    assert str(start) == "base/pretrain:model"
    assert str(policy(recipe, 4)) == "v4/rejection_sampling:model"
    assert str(policy(recipe, 5)) == "v5/ppo:model"


def test_ghost_attention_comes_after_v3_and_feeds_rejection_sampling() -> None:
    recipe = load_recipe("7b")
    made = ["ghost_attention", "safety_distillation"]
    assert [v for v in range(1, 6) if set(made) & set(names(recipe, v))] == [4, 5]
    assert names(recipe, 4)[-4:] == [*made, "rejection_sampling", "evaluate"]
    gatt, distillation, rejection_sampling = (
        node_of(recipe, 4, name).inputs for name in names(recipe, 4)[-4:-1]
    )
    assert str(gatt["policy"]) == str(distillation["policy"]) == "v3/rejection_sampling:model"
    assert str(distillation["safety_rm"]) == "v4/reward_model-safety:model"
    assert [str(output) for output in rejection_sampling["extra_demonstrations"]] == [
        "v4/ghost_attention:demonstrations",
        "v4/safety_distillation:demonstrations",
    ]
    assert [str(o) for o in rejection_sampling["red_team"]] == ["v4/safety_distillation:red_team"]
    third = node_of(recipe, 3, "rejection_sampling").inputs
    assert third["extra_demonstrations"] == third["red_team"] == ()


@pytest.mark.parametrize("off", ["gatt_from_version", "safety_distillation_from_version"])
def test_each_of_the_two_is_off_where_the_recipe_says_so(off: str) -> None:
    recipe = load_recipe("7b", [f"{off}=null"])
    left = "safety_distillation" if off.startswith("gatt") else "ghost_attention"
    (extra,) = node_of(recipe, 5, "rejection_sampling").inputs["extra_demonstrations"]
    assert str(extra) == f"v5/{left}:demonstrations"
    assert len(names(recipe, 5)) == len(names(load_recipe("7b"), 5)) - 1


def test_inputs_of_the_second_version(recipe: Recipe) -> None:
    pairs = node_of(recipe, 2, "sample_pairs")
    assert str(pairs.inputs["model_a"]) == "v1/rejection_sampling:model"
    assert str(pairs.inputs["model_b"]) == "base/sft:model"
    assert (pairs.fixed["label_a"], pairs.fixed["label_b"]) == ("v1", "sft")
    preferences = node_of(recipe, 2, "reward_model-safety").inputs["preferences"]
    assert [str(p.node) for p in preferences] == [
        "v1/collect_preferences",
        "v2/collect_preferences",
    ]
    models = node_of(recipe, 2, "evaluate").inputs["models"]
    assert list(models) == ["sft", "v1", "v2-rs", "v2"]
    assert str(models["v2-rs"]) == "v2/rejection_sampling:model"


def test_the_demo_iterates_as_the_paper_did() -> None:
    recipe = load_recipe("demo")
    assert [v for v in range(1, 6) if "ppo" in names(recipe, v)] == [5]
    assert list(node_of(recipe, 5, "evaluate").inputs["models"])[-3:] == ["v4", "v5-rs", "v5"]
    earlier = [
        len(node_of(recipe, v, "rejection_sampling").inputs["earlier_samples"]) for v in range(1, 6)
    ]
    assert earlier == [0, 0, 0, 3, 4]


def test_reward_models_start_from_the_chat_model_or_go_on() -> None:
    for setting, before in (("chat", None), ("previous", "v1/reward_model-safety:model")):
        recipe = load_recipe("demo", [f"reward_model_start={setting}"])
        first, second = (node_of(recipe, v, "reward_model-safety") for v in (1, 2))
        assert "continue_from" not in first.inputs
        found = second.inputs.get("continue_from")
        assert (found and str(found)) == before
        assert str(second.inputs["init_from"]) == "base/sft:model"


def test_a_student_learns_every_versions_bag() -> None:
    student = ["student.pretrain.model.dim=64", "student.distillation.num_epochs=1"]
    recipe = load_recipe("demo", student)
    assert names(recipe, 0)[-1] == "pretrain-student"
    node = node_of(recipe, 4, "distillation")
    assert str(node.inputs["init_from"]) == "base/pretrain-student:model"
    assert [str(o) for o in node.inputs["samples"]] == [
        f"v{v}/rejection_sampling:scored_samples" for v in (1, 2, 3, 4)
    ]
    models = node_of(recipe, 4, "evaluate").inputs["models"]
    assert list(models)[-2:] == ["v4-student", "v4"]


def test_every_input_comes_from_an_earlier_node_and_fits_the_config(tmp_path: Path) -> None:
    for name in ("demo", "dialogue", "real", "7b"):
        seen: dict[NodeId, int] = {}
        for node in nodes(load_recipe(name)):
            assert all(upstream in seen for upstream in node.upstream), node.id
            seen[node.id] = 1
            if node.id.name != "ingest":
                config = node.config(lambda output: fake_ref(output), lambda ref: tmp_path)
                assert config.seed == 0


def test_missing_files_are_named(tmp_path: Path) -> None:
    node = node_of(load_recipe("real", data_dir=str(tmp_path)), 0, "ingest")
    with pytest.raises(UserError, match=r"There is no file .*state_union\.jsonl\.gz"):
        node.config(fake_ref, lambda ref: tmp_path)
    with pytest.raises(UserError, match="names no sources"):
        node_of(load_recipe("7b"), 0, "ingest").config(fake_ref, lambda ref: tmp_path)


def test_a_source_is_known_by_its_content(tmp_path: Path, recipe: Recipe) -> None:
    source = Source(name="mine", path="a.txt", sha256="0" * 64, role="documents", format="text")
    local = recipe.model_copy(
        update={"world": None, "ingest": IngestSettings(sources=(source,)), "data_dir": tmp_path}
    )
    digests = []
    for text in ("one", "two"):
        (tmp_path / "a.txt").write_text(text)
        config = node_of(local, 0, "ingest").config(fake_ref, lambda ref: tmp_path)
        digests.append(config.sources[0].sha256)
    assert len(set(digests)) == 2
    assert "path" not in config.meaning()["sources"][0]


def fake_ref(output: Output) -> ArtifactRef:
    return ArtifactRef(digest=f"{abs(hash(str(output))):064x}"[-64:], kind="checkpoint")
