"""Which of K samples is learnt, what is counted, and how the temperature is found."""

import math

import pytest
import torch

from stages.models.best_of_k import best_temperature, choice_counts, choose_best
from stages.models.rewards import Scores
from stages.models.sampling import Sample
from stages.rejection_sampling import distinct_samples

INF = math.inf


def scored(rewards: list[float], safety: list[float] | None = None) -> Scores:
    reward = torch.tensor(rewards)
    return Scores(
        reward,
        torch.tensor(safety or [0.0] * len(rewards)),
        reward,
        torch.zeros(len(rewards), dtype=torch.bool),
    )


def test_of_equal_rewards_the_first_is_taken():
    samples = [Sample([4, 2], "one", True), Sample([5, 2], "two", True)]
    assert choose_best([0, 1], samples, scored([1.0, 1.0])) == 0
    assert choose_best([1, 0], samples, scored([1.0, 1.0])) == 1


def test_a_set_of_unsafe_answers_teaches_nothing():
    samples = [Sample([4, 2], "one", True), Sample([5, 2], "two", True)]
    scores = scored([1.0, 2.0], safety=[-3.0, -2.0])
    assert choose_best([0, 1], samples, scores) == 1
    assert choose_best([0, 1], samples, scores, unsafe_below=-1.7) is None
    assert choose_best([0, 1], samples, scores, unsafe_below=-2.5) == 1, "one is safe enough"
    cut_off = [samples[0], Sample([5], "two", False)]
    assert choose_best([0, 1], cut_off, scores, unsafe_below=-2.5) is None, "it was cut off"


def test_an_answer_that_is_no_text_is_not_learnt():
    samples = [Sample([4, 2], "half a letter \ufffd", True), Sample([5, 2], "whole", True)]
    assert choose_best([0, 1], samples, scored([2.0, 1.0])) == 1
    assert choose_best([0], samples, scored([2.0, 1.0])) is None


def row(prompt: str, reward: float, best: bool = False, **changes: object) -> dict[str, object]:
    defaults = {"finished": True, "response": "a", "safety_score": 1.0}
    return {"prompt_id": prompt, "reward": reward, "best": best, **defaults, **changes}


def test_ties_unsafe_sets_and_cut_off_samples_are_counted():
    rows = [
        *(row("tied", 1.0, best=True), row("tied", 1.0), row("tied", 0.5)),
        *(row("clear", 1.0, best=True), row("clear", 1.0, finished=False)),
        *(row("unsafe", 2.0, safety_score=-5.0), row("unsafe", 1.0, safety_score=-3.0)),
        *(row("cut", 1.0, finished=False), row("cut", 1.0, response=" ")),
        row("cut", 1.0, response="half \ufffd"),
    ]
    assert choice_counts(rows, unsafe_below=-1.7) == {
        "num_cut_off": 2.0,
        "num_all_cut_off": 1.0,
        "num_all_unsafe": 1.0,
        "num_ties": 1.0,
    }


def test_the_temperature_with_the_best_maxima_wins_domain_by_domain():
    # Helpfulness prefers 1.2 by one of its small units; safety, on a scale of hundreds, 0.8 by
    # less than a tenth of its own. Raw means would take 0.8.
    domains = ["helpfulness", "safety"]
    rewards = {
        0.8: torch.tensor([[0.0, 1.0], [0.0, 400.0]]),
        1.2: torch.tensor([[0.0, 2.0], [0.0, 390.0]]),
    }
    best, worth = best_temperature(rewards, domains)
    assert best == 1.2
    # helpfulness: 0, 1, 0, 2: mean 0.75, deviation sqrt(0.6875)
    # safety: 0, 400, 0, 390: mean 197.5, deviation sqrt((2 * 197.5² + 202.5² + 192.5²) / 4)
    helpful = (2 - 0.75) / math.sqrt(0.6875)
    safe = (390 - 197.5) / math.sqrt((2 * 197.5**2 + 202.5**2 + 192.5**2) / 4)
    assert worth[1.2] == pytest.approx((helpful + safe) / 2, rel=1e-4)


def test_a_temperature_without_a_usable_sample_has_the_worst_reward_there():
    domains = ["helpfulness", "helpfulness"]
    rewards = {
        0.8: torch.tensor([[0.0, 1.0], [5.0, -INF]]),
        1.2: torch.tensor([[0.0, 2.0], [-INF, -INF]]),
        9.0: torch.full((2, 2), -INF),
    }
    best, worth = best_temperature(rewards, domains)
    # the pool 0, 1, 5, 0, 2: mean 1.6, deviation sqrt(3.44); best of each (1, 5), (2, 0), (0, 0)
    assert best == 0.8
    expected = {0.8: 3 - 1.6, 1.2: 1 - 1.6, 9.0: -1.6}
    for temperature, centred in expected.items():
        assert worth[temperature] == pytest.approx(centred / math.sqrt(3.44), rel=1e-4)
    nothing = {t: torch.full((2, 2), -INF) for t in (0.8, 1.2)}
    assert best_temperature(nothing, domains) == (0.8, {0.8: 0.0, 1.2: 0.0})


def test_twins_are_sampled_once_and_a_finished_one_stands_for_them():
    samples = [
        Sample([4], "same", False),
        Sample([4, 2], "same", True),
        Sample([5, 2], "other", True),
        Sample([4, 2], "same", True),
    ]
    assert distinct_samples(range(4), samples) == [1, 2]
    assert distinct_samples([2, 3], samples) == [2, 3]
