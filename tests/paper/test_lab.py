"""One seed's pipeline is run no further than what is asked for."""

from dataclasses import replace

import pytest
from tiny_scale import TINY

from data_contracts.artifacts import ArtifactRef
from data_contracts.errors import UserError
from data_contracts.store import Store
from paper.findings import FINDINGS
from paper.lab import Lab
from paper.runner import Job, all_jobs, chosen
from paper.scale import QUICK, dialogue_recipe, recipe


def reference(character: str) -> ArtifactRef:
    return ArtifactRef(digest=character * 64, kind="checkpoint")


def test_what_is_given_is_not_made(tmp_path):
    made: list[str] = []
    lab = Lab(Store.open(tmp_path), TINY, 1, lambda stage, seconds: made.append(stage))
    models = {name: reference("a") for name in ("policy", "helpfulness_rm", "safety_rm", "prompts")}
    config = lab.config(5, "ppo", **models, kl_beta=0.0)
    assert dict(config)["kl_beta"] == 0.0
    assert dict(config)["policy"] == reference("a")
    assert dict(config)["num_iterations"] == TINY.ppo_iterations
    assert made == []


def test_a_wrong_setting_is_refused(tmp_path):
    lab = Lab(Store.open(tmp_path), TINY, 1, lambda stage, seconds: None)
    with pytest.raises(ValueError, match="Input should be"):
        lab.config(0, "sft", init_from=reference("a"), demonstrations=reference("b"), num_epochs=0)


def test_the_reward_models_that_ppo_climbs_are_trained_in_full(tmp_path):
    lab = Lab(Store.open(tmp_path), TINY, 1, lambda stage, seconds: None)
    inputs = {"init_from": reference("a"), "open_preferences": reference("b"), "preferences": ()}
    name = "reward_model-helpfulness"
    weekly = dict(lab.config(4, name, continue_from=reference("c"), **inputs))
    in_full = dict(lab.config(5, name, **inputs))
    assert (weekly["continue_from"], weekly["num_epochs"]) == (reference("c"), 2)
    assert (in_full["continue_from"], in_full["num_epochs"]) == (None, 3)


def test_a_run_is_shared_and_made_once(tmp_path):
    made: list[str] = []
    for _ in range(2):
        lab = Lab(Store.open(tmp_path), TINY, 1, lambda stage, seconds: made.append(stage))
        lab.made(
            "sandbox_world", num_documents=2, num_demonstrations=2, num_prompts=2, num_open_pairs=2
        )
    assert made == ["sandbox_world (seed 1)"]


def test_seeds_differ_in_nothing_but_the_seed():
    for make in (recipe, dialogue_recipe):
        first, second = (make(QUICK, seed).model_dump() for seed in (1, 2))
        assert first.pop("seed") != second.pop("seed")
        assert first == second


def test_nineteen_findings_with_a_letter_each():
    assert "".join(finding.letter for finding in FINDINGS) == "abcdefghijklmnopqrs"
    assert all(finding.effects for finding in FINDINGS)


def test_the_longest_chain_begins_and_seedless_findings_come_once():
    jobs = all_jobs(chosen([]), replace(TINY, seeds=(1, 2, 3), num_seeds_of_long=2))
    assert jobs[:3] == [Job("i", 1), Job("i", 2), Job("i", 3)]
    assert jobs.count(Job("s", 1)) == 1
    assert Job("s", 2) not in jobs
    long = [job.letter for job in jobs if job.seed == 2 and Job(job.letter, 3) not in jobs]
    assert sorted(long) == [*"adklmop"]
    assert len(jobs) == 3 * 18 - len(long) + 1


def test_an_unknown_letter_is_refused():
    with pytest.raises(UserError, match=r"no finding \(x\)"):
        chosen(["a", "x"])
