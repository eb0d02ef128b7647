"""Trap 6: the score is added one token past the EOS, on the first pad, or one short of it.

When it bites: the EOS is credited with γλ of what it earned, or a neighbour's score is learned
from; the policy is slow to learn where to end, and nothing in the metrics says so.

Seen to fail with each of these planted in the product:
- the score past the EOS, on the next response's first token, or on the token before the EOS;
- the score on a response's first token, or on every token;
- the score handed out in another order than the responses', or by domain;
- the score paid twice, or not to responses that were cut off;
- the KL term left out of the last token, or its sign turned;
- β applied to the score.
"""

import plain_ppo
import pytest
import torch
from trap_ppo import bench, split

from kernels.ppo import gae, kl_shaped_rewards

GAMMA, LAM, BETA = 0.9, 0.5, 0.1


def test_rewards_and_advantages_by_hand():
    lengths = [3, 1, 2]
    scores = torch.tensor([4.0, -2.0, 8.0])
    logprobs = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    ref_logprobs = torch.tensor([-1.0, -2.0, -1.0, -1.0, -1.0, -2.0])
    rewards = kl_shaped_rewards(scores, logprobs, ref_logprobs, lengths, BETA)
    # β times the log-ratios 0, 1, 0 | 0 | 0, 1, and each score on its response's last token
    assert rewards.tolist() == pytest.approx([0, -0.1, 4, -2, 0, 7.9])
    advantages = gae(rewards, torch.zeros(6), lengths, GAMMA, LAM).advantages
    # with all values 0: the rewards to go, discounted by γλ = 0.45
    to_go = [0.45 * (-0.1 + 0.45 * 4), -0.1 + 0.45 * 4, 4, -2, 0.45 * 7.9, 7.9]
    assert advantages.tolist() == pytest.approx(to_go)


@pytest.mark.parametrize("lengths", [[1], [2, 1], [1, 5, 1, 70], [64, 128, 65]])
def test_a_lone_score_is_on_the_last_token(lengths):
    for i, length in enumerate(lengths):
        scores = torch.zeros(len(lengths))
        scores[i] = 3.0
        same = torch.full((sum(lengths),), -1.5)
        rewards = kl_shaped_rewards(scores, same, same, lengths, BETA)
        expected = [0.0] * sum(lengths)
        expected[sum(lengths[:i]) + length - 1] = 3.0
        assert rewards.tolist() == expected


@pytest.mark.parametrize(
    ("beta", "gamma", "lam"), [(0.1, 1.0, 0.95), (0.0, 0.9, 0.5), (0.5, 0.7, 1.0), (0.2, 1.0, 0.0)]
)
def test_rollouts_are_rewarded_as_by_the_plain_loop(tmp_path, tokenizer, beta, gamma, lam):
    """With values, with responses of one token and of eight, finished and cut off."""
    ready = bench(tmp_path, tokenizer, kl_beta=beta, gamma=gamma, gae_lambda=lam)
    rollouts = ready.roll_out()
    assert {t.finished for t in rollouts.trajectories} == {True, False}
    flat = (rollouts.logprobs, rollouts.ref_logprobs, rollouts.values)
    pieces = zip(*(split(x, rollouts) for x in flat), strict=True)
    expected = []
    for score, (logprobs, ref_logprobs, values) in zip(rollouts.scores, pieces, strict=True):
        rewards = plain_ppo.shaped_rewards(
            score.item(), logprobs.tolist(), ref_logprobs.tolist(), beta
        )
        expected += plain_ppo.advantages(rewards, values.tolist(), gamma, lam)
    assert rollouts.advantages.tolist() == pytest.approx(expected, abs=1e-5)
    returns = [a + v for a, v in zip(expected, rollouts.values.tolist(), strict=True)]
    assert rollouts.returns.tolist() == pytest.approx(returns, abs=1e-5)


def test_each_response_is_paid_its_own_score_once(tmp_path, tokenizer):
    """Without discount and critic, the first token's advantage is all that a response earns."""
    ready = bench(tmp_path, tokenizer, gamma=1.0, gae_lambda=1.0)
    ready.models.value = lambda tokens, documents, rows: torch.zeros(len(rows))
    rollouts = ready.roll_out()
    first = torch.stack([advantages[0] for advantages in split(rollouts.advantages, rollouts)])
    torch.testing.assert_close(first, rollouts.scores - 0.1 * rollouts.kl, rtol=0, atol=1e-5)
    last = torch.stack([advantages[-1] for advantages in split(rollouts.advantages, rollouts)])
    log_ratios = split(rollouts.logprobs - rollouts.ref_logprobs, rollouts)
    at_the_end = torch.stack([ratios[-1] for ratios in log_ratios])
    torch.testing.assert_close(last, rollouts.scores - 0.1 * at_the_end, rtol=0, atol=1e-5)
