"""Trap 10: whitening counts pads, or is done by each rank for itself.

When it bites: the same response is above or below the mean by the length of its neighbours, or by
the rank it fell to; every rank pulls the policy its own way.

Seen to fail with each of these planted in the product:
- mean and variance over every cell of a padded rectangle, or one of the two;
- each rank whitening its own share, or averaging means and variances as if shares were equal;
- the variance divided by one less than the count, or about a mean that is not the group's;
- rewards whitened before they are gathered from the ranks;
- helpfulness and safety whitened together where `whiten_by` says domain, and apart where not;
- no mean subtracted, or no division by the spread;
- whitening by the previous batch's moments, or by micro-batch.
"""

import plain_llama
import plain_ppo
import pytest
import torch
from trap_ppo import bench

from kernels.masking import masked_var, masked_whiten, whiten, whiten_by_group


@pytest.mark.parametrize("num_pads", range(4))
@pytest.mark.parametrize("fill", [0.0, 1.0, -1e4, float("nan")])
def test_pads_change_nothing(num_pads, fill):
    kept = torch.tensor([[1.0, 2.0, 6.0], [4.0, 0.0, 5.0]])
    mask = torch.nn.functional.pad(torch.ones(2, 3, dtype=torch.bool), (0, num_pads))
    padded = torch.nn.functional.pad(kept, (0, num_pads), value=fill)
    variance = 14 / 3  # mean 3, squares 4 + 1 + 9 + 1 + 9 + 4 over 6
    expected = (kept - 3) / variance**0.5
    torch.testing.assert_close(masked_whiten(padded, mask)[mask].view(2, 3), expected)
    torch.testing.assert_close(
        masked_whiten(padded, mask, shift_mean=False)[mask].view(2, 3), expected + 3
    )
    assert masked_var(padded, mask).item() == pytest.approx(variance)


@pytest.mark.parametrize("name", ["whitened", "scaled", "whitened by group"])
def test_two_ranks_whiten_as_one(one_rank, two_ranks, name):
    together = torch.cat([rank[name] for rank in two_ranks])
    torch.testing.assert_close(together, one_rank[name])


@pytest.mark.parametrize("name", ["scores", "advantages", "returns", "values", "kl"])
def test_two_ranks_roll_out_as_one(one_rank, two_ranks, name):
    expected = one_rank["rollouts"][name]
    for rank in two_ranks:
        assert rank["responses"] == one_rank["responses"]
        torch.testing.assert_close(rank["rollouts"][name], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("whiten_by", ["batch", "domain"])
def test_scores_are_the_whitened_rewards_of_the_finished(tmp_path, tokenizer, whiten_by):
    ready = bench(tmp_path, tokenizer, whiten_by=whiten_by, gate_threshold=0.4)
    rollouts, stats = ready.roll_out_with_stats()
    assert 0 < stats["ppo/gate_rate"] < 1
    rewards, groups = plain_rewards(ready, rollouts)
    finished = [i for i, t in enumerate(rollouts.trajectories) if t.finished]
    if whiten_by == "batch":
        groups = [""] * len(groups)
    for group in set(groups):
        own = [i for i in finished if groups[i] == group]
        expected = plain_ppo.whitened([rewards[i] for i in own])
        assert rollouts.scores[own].tolist() == pytest.approx(expected, abs=1e-4)


def plain_rewards(ready, rollouts):
    """Each response's gated reward, and its domain."""
    rewards, domains = [], [row["domain"] for row in ready.prompts.rows]
    for trajectory, domain in zip(rollouts.trajectories, domains, strict=True):
        helpfulness, safety = (
            plain_llama.scores(model.module, trajectory.tokens)[-1].item()
            for model in (ready.models.rewards.helpfulness, ready.models.rewards.safety)
        )
        is_unsafe = torch.tensor(safety).sigmoid().item() < ready.config.gate_threshold
        rewards.append(safety if domain == "safety" or is_unsafe else helpfulness)
    return rewards, domains


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0, 2.0], [1e6, 1e6 + 1]])
def test_whitening_few_or_equal_values_stays_finite(values):
    found = whiten(torch.tensor(values))
    assert found.tolist() == pytest.approx(plain_ppo.whitened(values), abs=1e-3)


def test_a_group_is_whitened_by_its_own_moments():
    values = torch.tensor([1.0, 100.0, 3.0, 104.0, 102.0])
    found = whiten_by_group(values, torch.tensor([0, 1, 0, 1, 1]))
    spread = (8 / 3) ** 0.5  # of 100, 104, 102 about 102
    assert found.tolist() == pytest.approx([-1, -2 / spread, 1, 2 / spread, 0], abs=1e-5)
