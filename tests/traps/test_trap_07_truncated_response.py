"""Trap 7: a response cut off at the length limit is treated as finished, and its meaningless score
moves the advantage of every other response.

When it bites: the more responses run into the limit, the better or worse all the others look; the
policy learns to write until it is cut.

Seen to fail with each of these planted in the product:
- scores whitened over all responses, the cut ones included or set to a constant only afterwards;
- a cut response that keeps its own score, or gets 0 in place of the configured one;
- mean and variance over all responses, applied to the finished ones;
- a response that reaches the limit called finished, or one whose EOS is the last allowed token
  called cut off;
- GAE that goes on past a response's end, which is the next response where there is no EOS;
- cut responses among the best of K.
"""

from contextlib import nullcontext

import pytest
import torch
from trap_models import EOS, causal_lm, random_ids
from trap_ppo import bench, prompts

from kernels.attention import Documents
from kernels.generation import Sampling, generate
from stages.models.best_of_k import choose_best
from stages.models.rewards import RewardModels, Scores
from stages.models.sampling import Sample


def rolled_out(folder, tokenizer, cut_bonus=0.0, cut_value=0.0, **settings):
    """Rollouts where reward and value models say something else of texts without an EOS."""
    ready = bench(folder, tokenizer, **settings)

    def with_bonus(scorer):
        def score(tokens: torch.Tensor, documents: Documents) -> torch.Tensor:
            is_cut = tokens[documents.last] != EOS
            return scorer(tokens, documents) + cut_bonus * is_cut

        return score

    rewards = ready.models.rewards
    ready.models.rewards = RewardModels(
        with_bonus(rewards.helpfulness), with_bonus(rewards.safety), rewards.gate_threshold
    )
    ready.models.value = lambda tokens, documents, rows: torch.full((len(rows),), cut_value)
    return ready.roll_out()


@pytest.mark.parametrize("whiten_by", ["batch", "domain"])
@pytest.mark.parametrize("cut_bonus", [-50.0, 0.3, 50.0])
def test_what_a_truncated_response_scores_changes_no_advantage(
    tmp_path, tokenizer, whiten_by, cut_bonus
):
    one = rolled_out(tmp_path, tokenizer, whiten_by=whiten_by)
    other = rolled_out(tmp_path, tokenizer, cut_bonus, whiten_by=whiten_by)
    assert 2 <= sum(t.finished for t in one.trajectories) <= 10
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(one.advantages, other.advantages)


@pytest.mark.parametrize("whiten_by", ["batch", "domain"])
@pytest.mark.parametrize("unfinished_score", [-1.0, 0.5])
def test_a_truncated_response_gets_the_configured_score(
    tmp_path, tokenizer, whiten_by, unfinished_score
):
    rollouts = rolled_out(
        tmp_path, tokenizer, whiten_by=whiten_by, unfinished_score=unfinished_score
    )
    finished = torch.tensor([t.finished for t in rollouts.trajectories])
    assert rollouts.scores[~finished].tolist() == [unfinished_score] * int((~finished).sum())
    assert rollouts.scores[finished].sum().item() == pytest.approx(0, abs=1e-5)


def test_a_batch_without_a_finished_response_has_finite_advantages(
    tmp_path, tokenizer, monkeypatch
):
    ready = bench(tmp_path, tokenizer)
    endless = nullcontext(causal_lm(1, eos_logit=-30))
    monkeypatch.setattr(ready.models.policy, "gathered", lambda: endless)
    rollouts = ready.roll_out()
    assert not any(t.finished for t in rollouts.trajectories)
    assert rollouts.scores.tolist() == [-1.0] * 12
    assert rollouts.advantages.isfinite().all()


def test_advantages_end_with_the_response(tmp_path, tokenizer):
    """At γ = λ = 1 and a constant value v: no token of a response sees a v behind its end."""
    one, other = (
        rolled_out(tmp_path, tokenizer, cut_value=v, gamma=1.0, gae_lambda=1.0) for v in (0.0, 7.0)
    )
    shift = other.advantages - one.advantages
    torch.testing.assert_close(shift, torch.full_like(shift, -7.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("max_new_tokens", [1, 3, 8])
def test_only_an_eos_finishes_a_response(max_new_tokens):
    model = causal_lm(1, eos_logit=6)
    questions = prompts(12).tokens * 5
    out = generate(model, questions, Sampling(max_new_tokens), eos_id=EOS, seed=0)
    assert {True, False} == set(out.finished)
    for response, finished in zip(out.responses, out.finished, strict=True):
        assert finished == (EOS in response) == (response[-1] == EOS)
        assert finished or len(response) == max_new_tokens
    # an EOS on the last token that is allowed still is one
    at_the_limit = [r for r in out.responses if len(r) == max_new_tokens and r[-1] == EOS]
    assert at_the_limit


def test_the_best_of_k_is_a_finished_one():
    rewards = torch.tensor([9.0, 1.0, 2.0])
    scores = Scores(rewards, rewards, rewards, torch.tensor([False, False, False]))
    samples = [Sample(random_ids(3, i), "text", finished=i > 0) for i in range(3)]
    assert choose_best([0, 1, 2], samples, scores) == 2
    assert choose_best([0], samples, scores) is None
