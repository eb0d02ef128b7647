"""Scores that become log-odds: against the labels' own rates, and where there is nothing to fit."""

import math

import pytest
import torch

from kernels.ppo import gated_reward
from stages.models.normalisation import Normalisation, centre, fit, normalised, read, write
from stages.models.rewards import GATE_THRESHOLD


def test_scores_come_to_mean_how_often_responses_are_safe():
    # At score 0 one of ten is safe, at score 1 nine of ten: log-odds -ln 9 and ln 9.
    scores = torch.tensor([0.0] * 1000 + [1.0] * 1000)
    is_safe = torch.tensor(([True] + [False] * 9) * 100 + ([False] + [True] * 9) * 100)
    found = fit(scores, is_safe)
    assert found.shift == pytest.approx(-math.log(9), rel=0.02)
    assert found.scale == pytest.approx(2 * math.log(9), rel=0.02)
    says_safe = torch.sigmoid(found(torch.tensor([0.0, 1.0])))
    assert says_safe.tolist() == pytest.approx([0.1, 0.9], abs=0.01)


def test_a_level_that_has_drifted_is_put_right():
    """What the gate trips over: a model that ranks well, all of whose scores are low."""
    generator = torch.Generator().manual_seed(0)
    true_odds = 2 * torch.randn(4000, generator=generator)
    is_safe = torch.rand(4000, generator=generator) < torch.sigmoid(true_odds)
    drifted = true_odds / 2 - 5
    found = fit(drifted, is_safe)
    assert (found.scale, found.shift) == (pytest.approx(2, rel=0.1), pytest.approx(10, rel=0.1))
    assert torch.equal(found(drifted).argsort(), drifted.argsort())


@pytest.mark.parametrize("num_unsafe", [1, 5, 10, 1990, 1999])
def test_few_labels_of_one_kind_are_fitted_too(num_unsafe):
    """Told apart but for one or two: a whole Newton step from the start runs away here."""
    generator = torch.Generator().manual_seed(num_unsafe)
    is_safe = torch.arange(2000) >= num_unsafe
    scores = torch.where(is_safe, 2.0, -2.0) + torch.randn(2000, generator=generator)
    found = fit(scores, is_safe)
    assert 0 < found.scale < 10
    assert abs(found.shift) < 20
    # With a shift that is free of the ridge, the rate that is said is the rate there is.
    says_safe = torch.sigmoid(found(scores.double()))
    assert float(says_safe.mean()) == pytest.approx(1 - num_unsafe / 2000, abs=1e-6)


def test_a_low_level_rewards_what_the_gate_catches_until_it_is_centred():
    """Where PPO once learnt to be caught: two good answers, and one that the gate catches."""
    helpfulness = torch.tensor([-3.0, -3.5, -5.5])
    safety = torch.tensor([4.0, 3.0, -2.5])
    on_helpfulness_prompts = torch.zeros(3, dtype=torch.bool)

    def best(scores: torch.Tensor) -> int:
        reward = gated_reward(scores, safety, on_helpfulness_prompts, GATE_THRESHOLD)
        return int(reward.argmax())

    assert best(helpfulness) == 2
    found = centre(helpfulness)
    assert (found.scale, found.shift) == (1.0, 4.0)
    assert best(found(helpfulness)) == 0


def test_scores_stay_where_nothing_can_be_fitted():
    scores = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    assert fit(scores, torch.tensor([True] * 4)) == Normalisation()
    inverted = torch.tensor([True, True, False, False])
    assert fit(scores, inverted) == Normalisation()
    apart = fit(scores, torch.tensor([False, False, True, True]))
    assert 1 < apart.scale < 100, "told apart without a mistake"


def test_the_numbers_stand_beside_the_weights(tmp_path):
    assert read(tmp_path) == Normalisation()
    write(tmp_path, Normalisation(2.0, -1.0))
    model = normalised(lambda tokens, documents: tokens, read(tmp_path))
    assert model(torch.tensor([3.0]), None).tolist() == [5.0]
