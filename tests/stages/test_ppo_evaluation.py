"""When PPO compares its policy on held-out prompts, and so what it may publish."""

import math

import pytest
from small_store import prompt, small_store

from data_contracts.artifacts import ArtifactRef
from stages import ppo
from stages.models.early_stopping import EarlyStopping
from stages.runtime.distributed import process_group

ANY = ArtifactRef(digest="0" * 64, kind="checkpoint")


def config(**changes) -> ppo.Config:
    refs = dict.fromkeys(("policy", "helpfulness_rm", "safety_rm", "prompts"), ANY)
    return ppo.Config.model_validate({**refs, **changes})


def evaluated(settings: ppo.Config, stopping: EarlyStopping | None = None) -> list[int]:
    stopping = stopping or EarlyStopping()
    iterations = range(1, settings.num_iterations + 1)
    return [done for done in iterations if ppo.is_evaluated(settings, done, stopping)]


def test_the_last_iteration_is_compared_wherever_the_interval_ends():
    assert evaluated(config(num_iterations=9, evaluate_every=4)) == [4, 8, 9]
    assert evaluated(config(num_iterations=8, evaluate_every=4)) == [4, 8]
    assert evaluated(config(num_iterations=3, evaluate_every=10)) == [3]


def test_a_policy_that_has_not_trained_yet_uses_up_no_patience():
    warming = config(num_iterations=9, evaluate_every=2, num_value_warmup_iterations=4)
    assert evaluated(warming) == [6, 8, 9]


def test_the_iteration_that_spends_the_kl_is_compared_before_the_end():
    spent = EarlyStopping(is_spent=True)
    assert ppo.is_evaluated(config(num_iterations=9, evaluate_every=4), 3, spent)


@pytest.mark.parametrize("num_warmup", [0, 3])
def test_what_is_published_is_the_best_of_all_that_was_trained(tmp_path, monkeypatch, num_warmup):
    """Three iterations with an interval of ten: each later objective is better."""
    rows = [prompt(f"p{i}", f"The garden has {i} walls.", domain="safety") for i in range(3)]
    held_out = [{**row, "prompt_id": f"v{i}", "split": "validation"} for i, row in enumerate(rows)]
    process_group()
    work, refs = small_store(tmp_path, rows + held_out)
    names = ("policy", "helpfulness_rm", "safety_rm", "prompts")
    observe, seen = EarlyStopping.observe, []

    def ever_better(stopping, objective, iteration, is_allowed=True):
        assert math.isfinite(objective)
        seen.append(iteration)
        return observe(stopping, float(iteration), iteration, is_allowed)

    monkeypatch.setattr(EarlyStopping, "observe", ever_better)
    settings = config(
        **{name: refs[name] for name in names},
        num_iterations=3,
        evaluate_every=10,
        num_value_warmup_iterations=num_warmup,
        batch_size=3,
        mini_batch_size=3,
        max_new_tokens=8,
        learning_rate=1e-3,
    )
    output = ppo.run(settings, work)
    before = work.store.local(refs["policy"]) / "model.safetensors"
    after = output.artifacts["model"][0] / "model.safetensors"
    if num_warmup == 3:
        assert seen == [0]
        assert after.read_bytes() == before.read_bytes()
    else:
        assert seen == [0, 3]
        assert output.metrics["best_iteration"] == 3
        assert after.read_bytes() != before.read_bytes()
