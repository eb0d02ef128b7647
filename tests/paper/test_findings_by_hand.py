"""Findings on made-up samples: what they count, and that they fail where there is nothing."""

import numpy as np
import pytest

from paper import gold
from paper.finding import Verdict, conclude
from paper.findings import FINDINGS, sampling
from paper.findings.dialogues import after_the_first


def best_of_16(monkeypatch, seed: int, knowledge: float):
    """(f) on one seed, with a reward model that knows so much of the gold score."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=(160, 16))
    reward = knowledge * quality + rng.normal(size=(160, 16))

    def sweep(lab, policy, value=sampling.helpfulness_score):
        return {1.0: quality if value is gold.gold_of else reward}

    class Lab:
        sft = None

    monkeypatch.setattr(sampling, "sweep", sweep)
    return sampling.max_and_median(Lab())


@pytest.mark.parametrize(("knowledge", "verdict"), [(0.0, False), (0.5, True)])
def test_the_best_of_a_reward_model_that_knows_nothing_proves_nothing(
    monkeypatch, knowledge, verdict
):
    (finding,) = [f for f in FINDINGS if f.letter == "f"]
    by_seed = {s: best_of_16(monkeypatch, s, knowledge) for s in range(1, 6)}
    found = conclude(finding, by_seed, {}).verdict
    assert (found is Verdict.reproduced) == verdict


def test_turns_that_a_dialogue_does_not_reach_count_as_not_kept():
    # 20 dialogues: 12 keep it in the first turn, 10, 4 and 1 in the three later ones
    found = after_the_first([12, 10, 4, 1], 20)
    assert found.value == pytest.approx(15 / 60)
    assert found.error == pytest.approx((6 / 22 * 16 / 22 / 20) ** 0.5)
