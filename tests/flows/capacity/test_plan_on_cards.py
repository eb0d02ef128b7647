"""`rlhf plan --gpus N --gpu CARD`: what it prints, and what it refuses."""

import json
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from data_contracts.errors import UserError
from flows.capacity.assessment import assess
from flows.capacity.options import CardOptions
from flows.capacity.remedies import GIB, usable_bytes
from flows.capacity.workload import workload
from flows.cli import app
from flows.recipe import load_recipe
from stages.runtime.cards import CARDS, Site


def plan(*options: str) -> Result:
    return CliRunner().invoke(app, ["plan", "--home", "no_home", *options])


def capacity(*options: str) -> dict[str, Any]:
    result = plan("--json", *options)
    return json.loads(result.stdout)["capacity"]


def stages_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["stage"]: stage for stage in found["stages"]}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RLHF_PUE", "RLHF_KGCO2_PER_KWH"):
        monkeypatch.delenv(name, raising=False)


def test_without_cards_the_plan_stays_as_it_is() -> None:
    content = json.loads(plan("--recipe", "70b", "--json").stdout)
    assert set(content) == {"recipe", "home", "steps"}
    assert "GiB" not in plan("--recipe", "70b").stdout


def test_7b_fits_on_8_a100() -> None:
    result = plan("--recipe", "7b", "--gpus", "8", "--gpu", "a100-80gb")
    assert result.exit_code == 0, result.output
    for expected in ("base/pretrain", "KV cache", "184,320", "31.22", "MFU 45.3%", "PUE 1.1"):
        assert expected in result.stdout


def test_every_stage_has_its_memory_at_every_zero_stage() -> None:
    found = stages_of(capacity("--recipe", "7b", "--gpus", "8", "--gpu", "a100-80gb"))
    assert list(found) == [
        "pretrain",
        "sft",
        "reward_model-helpfulness",
        "reward_model-safety",
        "rejection_sampling",
        "ppo",
    ]
    for stage in found.values():
        by_zero = stage["memory_by_zero_stage"]
        assert list(by_zero) == ["0", "1", "2", "3"]
        weights = [by_zero[z]["weights"] for z in "0123"]
        assert weights == [weights[0]] * 3 + [weights[0] // 8]
        assert stage["memory"] == by_zero["3"]
    assert found["ppo"]["memory"]["sampler"] == 2 * 6_738_415_616  # gathered from the ranks
    assert found["ppo"]["memory_by_zero_stage"]["2"]["sampler"] == 0
    assert found["pretrain"]["memory"]["kv_cache"] == 0


def test_70b_with_zero_1_on_8_a100_is_refused_and_what_fits_is_said() -> None:
    cards = ("--gpus", "8", "--gpu", "a100-80gb")
    result = plan("--recipe", "70b", *cards, "--set", "pretrain.engine.zero_stage=1")
    assert result.exit_code == 2
    assert "3 *" in result.stdout  # the tables are printed all the same
    paragraph = " ".join(result.stderr.split())
    assert "pretrain 867.2 GiB" in paragraph
    assert (
        "pretrain: --gpus 8 --gpu a100-80gb --set pretrain.engine.zero_stage=3 "
        "--set pretrain.engine.offload_optimizer=true, "
        "or --gpus 32 --gpu a100-80gb --set pretrain.engine.zero_stage=3"
    ) in paragraph
    # larger cards in larger numbers, or the host's help on them
    assert (
        "rejection_sampling: --gpus 16 --gpu h200, or --gpus 8 --gpu h200 "
        "--set rejection_sampling.finetuning.engine.offload_optimizer=true"
    ) in paragraph
    assert "ppo: --gpus 2048 --gpu h200" in paragraph


@pytest.mark.parametrize(
    ("recipe", "num_gpus", "settings"),
    [("70b", 8, ["pretrain.engine.zero_stage=1"]), ("34b", 64, []), ("70b", 64, [])],
)
def test_what_is_said_to_fit_does(recipe: str, num_gpus: int, settings: list[str]) -> None:
    found = assess(load_recipe(recipe, settings), CardOptions(num_gpus, "a100-80gb"))
    refused = [stage for stage in found.stages if stage.remedies]
    assert refused
    for stage in refused:
        for remedy in stage.remedies:
            changes = [f"{key}={value}" for key, value in remedy.settings.items()]
            again = assess(
                load_recipe(recipe, [*settings, *changes]),
                CardOptions(remedy.num_gpus, remedy.card),
            )
            (same,) = [s for s in again.stages if s.stage.name == stage.stage.name]
            assert same.fits


def test_fewer_rows_at_a_time_before_more_gpus() -> None:
    recipe = load_recipe("7b", ["ppo.generation_batch_size=256", "ppo.micro_batch_size=64"])
    found = assess(recipe, CardOptions(8, "a100-80gb")).stages[-1]
    assert found.memory.peak_phase == "sample"
    assert [r.settings for r in found.remedies] == [{"ppo.generation_batch_size": 16}]


def test_a_recipe_without_iterations_has_two_training_stages() -> None:
    found = assess(load_recipe("7b", ["num_versions=0"]), CardOptions(8, "h200"))
    assert [s.stage.name for s in found.stages] == ["pretrain", "sft"]
    runs = assess(load_recipe("7b"), CardOptions(8, "h200")).stages
    assert [s.stage.num_runs for s in runs] == [1, 1, 5, 5, 5, 1]


def test_a_student_has_stages_of_its_own_size() -> None:
    engine = {"zero_stage": 3, "precision": "bf16"}  # as the recipe's own stages have it
    student = [
        "student.pretrain.model.n_layers=16",
        *(f"student.distillation.engine.{key}={value}" for key, value in engine.items()),
    ]
    recipe = load_recipe("7b", student)
    found = {s.stage.name: s for s in assess(recipe, CardOptions(8, "h200")).stages}
    assert [*found][1] == "pretrain-student"
    assert [*found][-1] == "distillation"
    assert found["distillation"].stage.num_runs == 5
    small, large = (found[name].memory.trained.weights for name in ("distillation", "sft"))
    vocabulary = 2 * 32_000 * 4096  # untied embeddings, which both have
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    assert small / large == pytest.approx((vocabulary + layers / 2) / (vocabulary + layers), 1e-3)
    used = [*found["distillation"].stage.settings(found["distillation"].stage.knobs)]
    assert used[0] == "student.distillation.engine.zero_stage"


def test_what_is_assumed_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = ("--recipe", "7b", "--gpus", "8", "--gpu", "h100-80gb")
    default = capacity(*cards)
    assert (default["watts"], default["pue"], default["kgco2_per_kwh"]) == (700, 1.1, 0.385)
    changed = capacity(
        *cards,
        *("--mfu", "0.5", "--watts", "350", "--pue", "1.0", "--kgco2-per-kwh", "0.1"),
        *("--assume", "num_demonstrations=55080"),
    )
    pretrain, sft = (
        [stages_of(plan)[name]["cost_of_a_run"] for plan in (default, changed)]
        for name in ("pretrain", "sft")
    )
    hours = default["mfu"] / 0.5
    assert pretrain[1]["gpu_hours"] == pytest.approx(hours * pretrain[0]["gpu_hours"])
    assert pretrain[1]["kwh"] == pytest.approx(hours * pretrain[0]["kwh"] / 2 / 1.1)
    assert pretrain[1]["tco2eq"] == pytest.approx(pretrain[1]["kwh"] * 0.1 / 1000)
    assert sft[1]["gpu_hours"] == pytest.approx(2 * hours * sft[0]["gpu_hours"])
    monkeypatch.setenv("RLHF_PUE", "1.2")
    assert Site.of_environment() == Site(1.2, 0.385)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpus", "8", "--gpu", "v100"), "Take one of a100-40gb, a100-80gb, h100-80gb, h200."),
        (("--gpus", "8"), "Give both --gpus and --gpu."),
        (("--mfu", "0.4"), "Give both --gpus and --gpu."),
        (("--gpus", "8", "--gpu", "h200", "--assume", "num_pears=3"), "Known are num_demonstr"),
        (("--gpus", "8", "--gpu", "h200", "--assume", "prompt_tokens=0"), "greater than 0"),
        (("--gpus", "8", "--gpu", "h200", "--pue", "0.9"), "a PUE of at least 1"),
    ],
)
def test_wrong_options_become_a_paragraph(options: tuple[str, ...], message: str) -> None:
    result = plan("--recipe", "7b", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_wrong_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_KGCO2_PER_KWH", "green")
    with pytest.raises(UserError, match="RLHF_KGCO2_PER_KWH is 'green', not a number"):
        Site.of_environment()


def test_an_external_base_model_gives_the_architecture(tmp_path) -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 1000,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(config))
    recipe = load_recipe("demo", ["pretrain.init_from.path=llama"], data_dir=str(tmp_path))
    found = assess(recipe, CardOptions(1, "a100-40gb"))
    assert found.model.vocab_size == 1000
    assert "pretrain" not in [s.stage.name for s in found.stages]
    with pytest.raises(UserError, match=r"The architecture of .*pears cannot be read"):
        assess(load_recipe("demo", ["pretrain.init_from.path=pears"]), CardOptions(1, "h200"))


def test_a_card_keeps_some_memory_for_itself() -> None:
    assert usable_bytes(CARDS["a100-80gb"]) == int(79.2 * GIB * 0.94)


def test_assumptions_are_checked_for_the_type() -> None:
    assert workload(["prompt_tokens=5", "decode_bandwidth=0.7"]).document_tokens == 5 + 217
    with pytest.raises(UserError, match="decode_bandwidth"):
        workload(["decode_bandwidth=2"])
