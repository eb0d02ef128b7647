"""Early stopping: what is best, when to stop, and which versions wait for the end on the disk."""

import math
from pathlib import Path

import pytest
import torch

from data_contracts.store import Store
from kernels.model import CausalLM, ModelConfig
from stages.models.early_stopping import (
    EarlyStopping,
    forget_bests_after,
    forget_older_bests,
    keep_best,
    publish_best,
    within_budget,
)
from stages.runtime.distributed import process_group
from stages.runtime.engine import Engine, EngineSettings, OptimizerSettings
from stages.runtime.schedules import constant
from stages.runtime.stage import WorkDir
from stages.text.tokenizer import Tokenizer
from stages.text.training import train_bpe


def test_the_best_iteration_and_how_long_ago_it_was():
    stopping = EarlyStopping()
    assert [stopping.observe(v, i) for i, v in enumerate([0.0, 2.0, 1.0, 2.0])] == [
        *(True, True, False, False)
    ]
    assert (stopping.best_iteration, stopping.best_objective) == (1, 2.0)
    assert stopping.num_without_best == 2
    assert not stopping.observe(math.nan, 4)
    assert stopping.observe(2.5, 5)
    assert stopping.num_without_best == 0


def test_training_ends_without_a_new_best_or_beyond_the_kl_budget():
    stopping = EarlyStopping()
    for iteration, objective in enumerate([1.0, 0.5, 0.5]):
        stopping.observe(objective, iteration)
    assert [stopping.is_over(patience) for patience in (2, 3)] == [True, False]
    stopping.spend(0.9, budget=1.0)
    stopping.spend(9.0, budget=None)
    assert not stopping.is_over(3)
    stopping.spend(1.1, budget=1.0)
    assert stopping.is_over(3)
    stopping.spend(0.0, budget=1.0)
    assert EarlyStopping(**vars(stopping)).is_over(3), "spent for good, after a resume too"


def test_no_version_beyond_the_kl_budget_is_kept():
    stopping = EarlyStopping()
    assert stopping.observe(0.0, 0, within_budget(0.0, 1.0))
    assert not stopping.observe(5.0, 5, within_budget(1.5, 1.0))
    assert stopping.best_iteration == 0
    assert stopping.observe(2.0, 10, within_budget(1.0, 1.0))


def test_rewards_are_measured_from_where_training_began_domain_by_domain():
    stopping = EarlyStopping()
    domains = ["safety", "helpfulness", "safety", "helpfulness"]
    all_finished = torch.tensor([True] * 4)
    scores = torch.tensor([1.0, 10.0, 3.0, 30.0])
    first = stopping.standardised(scores, domains, all_finished, -1.0)
    assert first.tolist() == pytest.approx([-1, -1, 1, 1], abs=1e-4)
    # safety: mean 2, deviation 1; helpfulness: mean 20, deviation 10
    scores = torch.tensor([5.0, 20.0, 2.0, 0.0])
    later = stopping.standardised(scores, domains, all_finished, -1.0)
    assert later.tolist() == pytest.approx([3, 0, 0, -2], abs=1e-4)
    resumed = EarlyStopping(**vars(stopping))
    again = resumed.standardised(torch.tensor([5.0]), ["safety"], torch.tensor([True]), -1.0)
    assert again.tolist() == [later[0].item()]


def test_a_held_out_response_that_was_cut_off_gets_the_fixed_score():
    stopping = EarlyStopping()
    domains = ["safety"] * 3 + ["helpfulness"]
    finished = torch.tensor([True, True, False, False])
    found = stopping.standardised(torch.tensor([1.0, 3.0, 90.0, 90.0]), domains, finished, -2.0)
    assert found.tolist() == [-1, 1, -2, -2]
    assert set(stopping.baseline) == {"safety"}, "the other domain's is still to be set"


def test_equal_rewards_have_no_spread_to_be_divided_by():
    stopping = EarlyStopping()
    one, finished = ["safety"], torch.tensor([True])
    assert stopping.standardised(torch.tensor([2.0]), one, finished, -1.0).tolist() == [0]
    later = stopping.standardised(torch.tensor([2.5]), one, finished, -1.0)
    assert later.tolist() == [0.5], "in the reward model's own units"


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"The garden has {i} old walls.\n" for i in range(60)]
    return Tokenizer.from_bytes(train_bpe(texts, 290))


@pytest.fixture
def work(tmp_path: Path):
    return WorkDir(tmp_path / "attempt-1", process_group(), Store.open(tmp_path / "home"))


@pytest.fixture
def keep(work: WorkDir, tokenizer: Tokenizer):
    config = ModelConfig(tokenizer.vocab_size, 16, 1, 2, 2, 32)
    model = CausalLM(config, torch.Generator().manual_seed(0))
    optimizer = OptimizerSettings(learning_rate=1e-3)
    policy = Engine(model, optimizer, constant(1e-3), EngineSettings(), work.rank)
    return lambda iteration: keep_best(work, policy, config, tokenizer, iteration)


def kept(work: WorkDir) -> list[int]:
    return sorted(int(path.name) for path in (work.checkpoints / "best").iterdir())


def test_what_a_resume_from_a_kept_checkpoint_could_publish_is_kept(work, keep):
    for iteration in (0, 3, 5, 8, 12):
        keep(iteration)
    forget_older_bests(work, [6, 10])  # at 6 the best one was 5, at 10 it was 8
    assert kept(work) == [5, 8, 12]
    forget_older_bests(work, [])  # nothing is saved yet: a resume starts over
    assert kept(work) == [5, 8, 12]
    forget_bests_after(work, 10)
    assert kept(work) == [5, 8]
    forget_older_bests(work, [10, 12])
    assert kept(work) == [8]


def test_the_best_is_published_even_if_an_earlier_attempt_was_killed_while_writing(work, keep):
    unfinished = work.checkpoints / "best" / ".unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors").write_bytes(b"half")
    keep(4)
    keep(4)
    folder, kind = publish_best(work, EarlyStopping(best_iteration=4))
    assert kind == "checkpoint"
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.model"} <= names
    assert (folder / "model.safetensors").stat().st_size > 1000
