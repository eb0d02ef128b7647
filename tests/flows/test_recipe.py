from pathlib import Path

import pytest

from data_contracts.errors import UserError
from flows.recipe import Recipe, load_recipe, merged, parse_setting, recipe_names
from flows.recipe_keys import settings_keys


def problem(source: str, *settings: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(source, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_named_recipes() -> None:
    assert recipe_names() == ["13b", "34b", "70b", "7b", "demo", "dialogue", "real"]
    for name in recipe_names():
        assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("name", "kv_heads", "pretraining", "reward_model", "beta"),
    [
        ("7b", 32, 3e-4, 1e-5, 0.01),
        ("13b", 40, 3e-4, 1e-5, 0.01),
        ("34b", 8, 1.5e-4, 1e-5, 0.005),
        ("70b", 8, 1.5e-4, 5e-6, 0.005),
    ],
)
def test_the_papers_numbers(
    name: str, kv_heads: int, pretraining: float, reward_model: float, beta: float
) -> None:
    recipe = load_recipe(name)
    assert recipe.pretrain.model.n_kv_heads == kv_heads
    assert recipe.pretrain.learning_rate == pretraining
    assert recipe.safety_rm.learning_rate == reward_model
    assert recipe.ppo.kl_beta == beta
    assert (recipe.num_versions, recipe.ppo_from_version) == (5, 5)


def test_settings_change_one_value_and_keep_its_neighbours() -> None:
    recipe = load_recipe("demo", ["ppo.kl_beta=2e-2", "sample_pairs.num_prompts.safety=5"])
    assert recipe.ppo.kl_beta == 0.02
    assert recipe.sample_pairs.num_prompts["safety"] == 5
    assert recipe.sample_pairs.num_prompts["helpfulness"] > 5


def test_overrides_come_last() -> None:
    recipe = load_recipe("demo", ["seed=1"], seed=2, num_versions=None, launch__num_processes=2)
    assert recipe.seed == 2
    assert recipe.num_versions == 5
    assert recipe.launch.of("ppo").num_processes == 2
    assert recipe.launch.of("ingest").num_processes == 1


def test_a_file_extends_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: real\nproduct: mine\npretrain:\n  learning_rate: 1e-3\n")
    recipe = load_recipe(str(file))
    assert (recipe.name, recipe.product) == ("mine", "mine")
    assert recipe.pretrain.learning_rate == 1e-3
    assert recipe.pretrain.source_weights == load_recipe("real").pretrain.source_weights


def test_a_file_extends_one_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes"
    (folder / "products").mkdir(parents=True)
    (folder / "team.yaml").write_text("extends: real\nproduct: team\nseed: 7\n")
    mine = folder / "products" / "mine.yaml"
    mine.write_text("extends: ../team.yaml\nproduct: mine\n")
    (tmp_path / "team.yaml").write_text("extends: demo\nseed: 1\n")
    monkeypatch.chdir(folder)
    for source in ("products/mine.yaml", str(mine)):  # a worker reads it from a folder of its own
        recipe = load_recipe(source)
        assert (recipe.name, recipe.product, recipe.seed) == ("mine", "mine", 7)
        monkeypatch.chdir(tmp_path)


def test_extends_names_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the current folder is not meant, nor a folder that has a recipe's name."""
    (tmp_path / "team.yaml").write_text("extends: demo\n")
    folder = tmp_path / "recipes"
    (folder / "real").mkdir(parents=True)
    mine = folder / "mine.yaml"
    mine.write_text("extends: team.yaml\n")
    monkeypatch.chdir(tmp_path)
    assert f"mine.yaml extends 'team.yaml': there is no such recipe and no file {folder}/" in (
        problem(str(mine))
    )
    mine.write_text("extends: real\n")
    assert load_recipe(str(mine)).product == load_recipe("real").product


def test_files_that_extend_each_other(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    mine.write_text("extends: mine.yaml\n")
    assert f"stands on itself: {mine} extends {mine}." in problem(str(mine))
    mine.write_text("extends: other.yaml\n")
    other.write_text("extends: ./mine.yaml\n")
    assert f"{mine} extends {other} extends {mine}." in problem(str(mine))


def test_a_recipe_survives_being_written_down(tmp_path: Path) -> None:
    recipe = load_recipe("real", data_dir=str(tmp_path))
    file = tmp_path / "recipe.json"
    file.write_text(recipe.model_dump_json())
    assert load_recipe(str(file)) == recipe


def test_an_unknown_key_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    assert "unknown key ppo.kl_bta (did you mean ppo.kl_beta?)" in problem("demo", "ppo.kl_bta=1")
    file = tmp_path / "mine.yaml"
    file.write_text("extends: demo\nlearning_rate: 1\n")
    assert "unknown key learning_rate (did you mean " in problem(str(file))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("ppo.kl_beta=many", "ppo.kl_beta: input should be a valid number"),
        ("ppo=3", "ppo: "),
        ("num_versions=-1", "num_versions: input should be greater than or equal to 0"),
        ("ppo.kl_beta", "--set ppo.kl_beta is not key=value"),
        ("ppo.kl_beta=[1", "is not valid YAML"),
        ("pretrain.sequence_length=100000", "sequence_length 100000 exceeds"),
        ("launch.by_stage.ppo=0", "launch.by_stage.ppo: input should be greater than 0, not 0"),
        ("launch.by_stage.ppo=1.5", "launch.by_stage.ppo: input should be a valid integer"),
        ("launch.timeout_minutes.sft=-1", "launch.timeout_minutes.sft: input should be greater"),
        ("launch.timeout_minutes.sft=0", "launch.timeout_minutes.sft: input should be greater"),
        ("launch.timeout_minutes.sft=.inf", "launch.timeout_minutes.sft: input should be less"),
        ("launch.timeout_minutes.sft=.nan", "launch.timeout_minutes.sft: input should be "),
        ("launch.patience_minutes=.inf", "launch.patience_minutes: input should be less"),
        ("launch.by_stage.pp=2", "there is no stage pp; the stages are collect_preferences, "),
        ("launch.timeout_minutes.runtime=2", "there is no stage runtime; "),
        ("launch.pools.models=a100", "there is no stage models; "),
    ],
)
def test_a_wrong_value_is_one_paragraph(setting: str, words: str) -> None:
    assert words in problem("demo", setting)


def test_many_problems_are_cut_short() -> None:
    wrong = [f"ppo.{letter}=1" for letter in "abcdef"]
    assert "; and 3 more" in problem("demo", *wrong)


def test_no_such_recipe(tmp_path: Path) -> None:
    assert "Take one of 13b, 34b, 70b, 7b, demo, dialogue, real" in problem("dmo")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    assert "not valid YAML" in problem(str(broken))
    listed = tmp_path / "list.yaml"
    listed.write_text("- 1\n")
    assert "does not hold a mapping" in problem(str(listed))


def test_values_are_read_as_yaml() -> None:
    assert parse_setting("a.b=3e-4") == {"a": {"b": 3e-4}}
    assert parse_setting("a=[1, 2]") == {"a": [1, 2]}
    assert parse_setting("a=null") == {"a": None}
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_every_key_is_listed() -> None:
    keys = set(settings_keys(Recipe))
    assert {"ppo.kl_beta", "pretrain.model.dim", "ingest.sources", "launch.num_threads"} <= keys


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("num_versions=3", "num_versions 3 exceeds collect_preferences.num_batches 2"),
        ("pretrain.source_weights.web=1", "source_weights names web, and the sources of documents"),
        ("pretrain.model.n_heads=3", "dim 128 does not split into 3 heads"),
        ("pretrain.model.ffn_hidden=0", "pretrain.model.ffn_hidden: input should be greater"),
        ("pretrain.source_weights.abc_news=.nan", "finite number"),
        ("pretrain.num_tokens=10", "less than one step of 4096 tokens"),
        ("evaluate.max_new_tokens=1024", "evaluate.max_new_tokens 1024 leaves no room"),
        ("ppo.max_new_tokens=1024", "ppo.max_new_tokens 1024 leaves no room"),
        (
            "rejection_sampling.max_new_tokens=384",
            "finetuning.sequence_length 384, in which its answers are learnt",
        ),
        ("ppo.num_prompts={helpfullness: 3}", "'helpfulness' or 'safety', not 'helpfullness'"),
        ("ppo.num_prompts.safety=-3", "greater than or equal to 0"),
        ("evaluate.num_prompts={helpfulness: 0, safety: 0}", "at least one domain"),
        ("seed=99999999999999999999", "less than 9223372036854775808"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(setting: str, words: str) -> None:
    assert words in problem("real", setting)


def test_stages_that_do_not_run_contradict_nothing() -> None:
    settings = ["ppo.max_new_tokens=1024", "ppo_from_version=3"]
    assert load_recipe("real", settings).ppo.max_new_tokens == 1024
    weightless = ["pretrain.source_weights={web: 0, abc_news: 1}"]
    assert load_recipe("real", weightless).pretrain.source_weights["web"] == 0


def test_null_in_place_of_a_mapping_is_its_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: real\nproduct: mine\npretrain: {source_weights: null}\n")
    assert load_recipe(str(file)).pretrain.source_weights == {}
    assert load_recipe("demo", ["world=null"]).world is None


def test_a_hostfile_is_known_by_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = load_recipe("demo", ["launch.hostfile=hosts"]).launch.hostfile
    assert found == tmp_path / "hosts"
