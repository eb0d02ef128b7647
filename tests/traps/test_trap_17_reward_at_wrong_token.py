"""Trap 17: the reward is read at another token than the last: at a pad, one short of the end, or at
the first token that looks like padding.

When it bites: the score depends on the padding's side and amount; where the padding's id is the
EOS's, every response may get the same score.

Seen to fail with each of these planted in the product:
- the score of the first token, of the one before the last, or of the batch's last row;
- the mean or the largest score over a document's tokens;
- the last row of a padded bucket, or of the longest document;
- scores handed back in the order of lengths, or of ranks;
- the score at the first EOS, or before trailing ids that may be padding;
- the prompt scored alone, the response alone, or without its EOS;
- the chosen side's score taken for the rejected one's;
- helpfulness and safety exchanged, or the gate turned round.
"""

import plain_llama
import pytest
import torch
from trap_models import EOS, HEADS, ONE_RANK, random_ids, reward_model
from trap_ppo import bench
from trap_store import prompt_rows, published

from stages import evaluate
from stages.models.pairs import Pair, flat_pairs, score_pairs
from stages.models.rewards import RewardModels
from stages.models.scoring import score_sequences
from stages.rejection_sampling import Config, sample_and_score
from stages.runtime.engine import EngineSettings, frozen
from stages.text.dialogue import render_prompt

CLOSE = {"rtol": 0, "atol": 2e-5}
SEQUENCES = [
    *(random_ids(n, n) for n in (7, 1, 16, 33, 2, 17, 16)),
    [*random_ids(3, 50), EOS, *random_ids(4, 51), EOS],  # two turns
    [*random_ids(3, 50), EOS],  # the first of them
    [*random_ids(5, 52), EOS, EOS, EOS],
    [*random_ids(5, 52), 3, 3],
    [*random_ids(5, 52), 0],
    [EOS],
]


@pytest.fixture(params=HEADS.values(), ids=HEADS.keys())
def model(request):
    return reward_model(0, request.param)


def alone(model, sequences):
    return torch.stack([plain_llama.scores(model, s)[-1].detach() for s in sequences])


@pytest.mark.parametrize("max_tokens", [1, 20, 60, 10_000])
@pytest.mark.parametrize("backwards", [False, True])
def test_scores_are_those_of_each_last_token(model, max_tokens, backwards):
    sequences = SEQUENCES[::-1] if backwards else SEQUENCES
    found = score_sequences(model, sequences, ONE_RANK, max_tokens)
    torch.testing.assert_close(found.double(), alone(model, sequences), **CLOSE)


@pytest.mark.parametrize("num_others", range(4))
@pytest.mark.parametrize("other_length", [1, 5, 30])
def test_company_changes_no_score(model, num_others, other_length):
    sequence = random_ids(6, 0)
    others = [random_ids(other_length, 9 + i) for i in range(num_others)]
    expected = alone(model, [sequence]).item()
    for place in range(num_others + 1):
        batch = [*others[:place], sequence, *others[place:]]
        found = score_sequences(model, batch, ONE_RANK)
        assert found[place].item() == pytest.approx(expected, abs=2e-5)


def test_the_last_token_is_read(model):
    """Two sequences that differ in their last token have different scores; longer ones as well."""
    sequence = random_ids(6, 0)
    variants = [[*sequence[:-1], token] for token in (EOS, 3, 0, 20, 21)]
    variants += [[*sequence, EOS], [*sequence, EOS, EOS], sequence[:-1]]
    scores = score_sequences(model, variants, ONE_RANK)
    assert len({round(score, 4) for score in scores.tolist()}) == len(variants)


def test_pairs_keep_their_sides(model):
    sides = [(random_ids(3 + i, i), random_ids(9 - i, 50 + i)) for i in range(5)]
    pairs = [Pair(chosen, rejected, None, None) for chosen, rejected in sides]
    chosen, rejected = alone(model, [c for c, _ in sides]), alone(model, [r for _, r in sides])
    found = model(*flat_pairs(pairs, torch.device("cpu")))
    torch.testing.assert_close(found.double(), torch.cat([chosen, rejected]), **CLOSE)
    margins = score_pairs(model, pairs, ONE_RANK).margins
    torch.testing.assert_close(margins.double(), chosen - rejected, **CLOSE)


def test_ppo_rewards_prompt_and_response_to_the_end(tmp_path, tokenizer):
    """The gate's choice is made by hand: safety prompts, and responses that look unsafe."""
    ready = bench(tmp_path, tokenizer, gate_threshold=0.4)
    trajectories = ready.roll_out().trajectories
    sequences = [t.tokens for t in trajectories]
    is_safety = [row["domain"] == "safety" for row in ready.prompts.rows]
    rewards = ready.models.rewards
    found = rewards.score(sequences, is_safety, ready.work)
    helpfulness = alone(rewards.helpfulness.module, sequences)
    safety = alone(rewards.safety.module, sequences)
    is_unsafe = safety.sigmoid() < 0.4
    expected = torch.where(torch.tensor(is_safety) | is_unsafe, safety, helpfulness)
    assert 0 < is_unsafe.sum() < 12
    torch.testing.assert_close(found.helpfulness.double(), helpfulness, **CLOSE)
    torch.testing.assert_close(found.safety.double(), safety, **CLOSE)
    torch.testing.assert_close(found.reward.double(), expected, **CLOSE)
    assert torch.equal(found.gated, is_unsafe & ~torch.tensor(is_safety))


def test_rejection_sampling_scores_prompt_and_response_to_the_end(tmp_path, tokenizer):
    work, refs = published(tmp_path, tokenizer)
    config = Config.model_validate(
        {
            **{name: refs[name] for name in Config.model_fields if name in refs},
            "version": 1,
            "start_from": refs["policy"],
            "num_samples": 3,
            "max_new_tokens": 8,
        }
    )
    prompts, samples, scores = sample_and_score(config, work)
    questions = [p for p in prompts for _ in range(3)]
    sequences = [
        render_prompt(question["messages"], tokenizer) + sample.tokens
        for question, sample in zip(questions, samples, strict=True)
    ]
    for found, seed in ((scores.safety, 3), (scores.helpfulness, 4)):
        torch.testing.assert_close(found.double(), alone(reward_model(seed), sequences), **CLOSE)


def test_an_evaluation_scores_prompt_and_response_to_the_end(tmp_path, tokenizer, drawn):
    work, refs = published(tmp_path, tokenizer)
    own = {name: refs[name] for name in evaluate.Config.model_fields if name in refs}
    config = evaluate.Config.model_validate(
        {**own, "version": 1, "models": {"v1": refs["policy"]}, "max_new_tokens": 8}
    )
    judges = RewardModels(frozen_reward(3), frozen_reward(4), config.gate_threshold)
    prompts = prompt_rows()
    rows = evaluate.answer(config, work, "v1", prompts, judges)
    sequences = [
        render_prompt(prompt["messages"], tokenizer) + response
        for prompt, response in zip(prompts, drawn[0], strict=True)
    ]
    for name, seed in (("helpfulness_score", 3), ("safety_score", 4)):
        expected = alone(reward_model(seed), sequences).tolist()
        assert [row[name] for row in rows] == pytest.approx(expected, abs=2e-5)


def frozen_reward(seed):
    return frozen(reward_model(seed), EngineSettings(), ONE_RANK)
