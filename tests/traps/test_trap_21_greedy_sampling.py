"""Trap 21: what is called sampling is greedy, or draws the same random numbers again and again.

When it bites: the responses to a prompt are one response; best of K is best of one, whitening
divides by almost nothing, and PPO explores nowhere.

Seen to fail with each of these planted in the product:
- the likeliest token always taken, by the generator or for equal prompts;
- one random number for all rows, for all steps, or for all ranks;
- a seed that leaves out the iteration, the stage's seed, the version or the side of a pair;
- equal prompts answered once and copied;
- each rank answering with the numbers of the first rank's prompts;
- temperatures of a pair's sides ignored.
"""

import plain_llama
import pytest
import torch
from trap_models import causal_lm, random_ids
from trap_ppo import bench, many, prompts
from trap_store import prompt_rows, published

from kernels.generation import Sampling, generate
from stages import rejection_sampling, sample_pairs
from stages.models import sampling


def distinct(responses):
    return len({tuple(response) for response in responses})


def responses_of(trajectories):
    return [trajectory.response for trajectory in trajectories]


def test_rollouts_of_one_prompt_differ(tmp_path, tokenizer):
    drawn = bench(tmp_path, tokenizer).sample(many(prompts(1), 64), seed=0)
    assert distinct(t.response[:1] for t in drawn) > 30
    # also within what finished rows leave behind, one response says nothing of the next
    assert distinct(t.response[1:3] for t in drawn if len(t.response) > 2) > 30


def test_rollouts_are_not_the_likeliest(tmp_path, tokenizer):
    ready = bench(tmp_path, tokenizer)
    trajectories = ready.roll_out().trajectories
    is_likeliest = []
    for t in trajectories:
        rows = plain_llama.logits(ready.models.policy.module, t.tokens)[len(t.prompt) - 1 : -1]
        is_likeliest += (rows.argmax(1) == torch.tensor(t.response)).tolist()
    assert sum(is_likeliest) / len(is_likeliest) < 0.4


def test_every_iteration_and_every_seed_draws_anew(tmp_path, tokenizer):
    ready = bench(tmp_path, tokenizer)
    found = [responses_of(ready.roll_out(iteration).trajectories) for iteration in (0, 1, 2, 0)]
    assert found[0] == found[3]
    other_seed = bench(tmp_path, tokenizer, seed=1).roll_out()
    found[3] = responses_of(other_seed.trajectories)
    for i in range(12):
        assert distinct(batch[i] for batch in found) > 1
    assert distinct(response for batch in found for response in batch) > 40


def test_random_numbers_of_rows_and_steps_are_their_own():
    """From a flat distribution a token is its random number: no two rows, no two steps agree."""
    model = causal_lm(0, eos_logit=0)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    out = generate(model, [random_ids(3, 0)] * 300, Sampling(30), eos_id=-1, seed=0)
    drawn = torch.tensor(out.responses).double()
    correlations = torch.corrcoef(drawn.T) - torch.eye(30)  # between steps
    assert correlations.abs().max() < 0.3
    between_rows = torch.corrcoef(drawn) - torch.eye(300)
    assert between_rows.abs().max() < 0.9
    assert drawn.mean().item() == pytest.approx(149.5, abs=4 * 86.6 / drawn.numel() ** 0.5)


def test_two_ranks_answer_one_prompt_differently(two_ranks):
    responses = two_ranks[0]["same prompt"]
    assert two_ranks[1]["same prompt"] == responses
    assert distinct(responses) == len(responses)
    assert responses[0::2] != responses[1::2]


def rejection_config(refs, **settings):
    own = {name: refs[name] for name in rejection_sampling.Config.model_fields if name in refs}
    return rejection_sampling.Config.model_validate(
        {
            **own,
            "start_from": refs["policy"],
            "version": 1,
            "num_samples": 6,
            "max_new_tokens": 8,
            **settings,
        }
    )


def test_the_k_samples_of_rejection_sampling_differ(tmp_path, tokenizer):
    work, refs = published(tmp_path, tokenizer)
    drawn = {}
    cases = {"first": {}, "again": {}, "next week": {"version": 2}, "other seed": {"seed": 1}}
    for name, settings in cases.items():
        prompts, samples, _ = rejection_sampling.sample_and_score(
            rejection_config(refs, **settings), work
        )
        by_prompt = [[s.tokens for s in samples[6 * i : 6 * i + 6]] for i in range(len(prompts))]
        assert all(distinct(responses) >= 5 for responses in by_prompt)
        drawn[name] = {row["prompt_id"]: own for row, own in zip(prompts, by_prompt, strict=True)}
    assert drawn["first"] == drawn["again"]
    for prompt_id, responses in drawn["first"].items():
        for other in ("next week", "other seed"):
            assert distinct(responses + drawn[other][prompt_id]) > 6


def test_the_two_sides_of_a_pair_differ(tmp_path, tokenizer, monkeypatch):
    """Even when both come from one model; and each of their temperatures is used."""
    temperatures = []

    def listening(model, questions, settings, **options):
        temperatures.append(settings.temperature)
        return generate(model, questions, settings, **options)

    monkeypatch.setattr(sampling, "generate", listening)
    work, refs = published(tmp_path, tokenizer)
    config = sample_pairs.Config.model_validate(
        {
            "batch": 1,
            "prompts": refs["prompts"],
            "model_a": refs["policy"],
            "model_b": refs["policy"],
            "label_a": "a",
            "label_b": "b",
            "temperatures_a": [0.7, 1.0],
            "temperatures_b": [1.0, 1.3],
            "max_new_tokens": 8,
        }
    )
    rows = prompt_rows()[:6]
    _, side_a, used_a = sample_pairs.sample_side(config, work, rows, is_a=True)
    _, side_b, used_b = sample_pairs.sample_side(config, work, rows, is_a=False)
    assert temperatures == [0.7, 1.0, 1.0, 1.3]
    assert (sorted(set(used_a)), sorted(set(used_b))) == ([0.7, 1.0], [1.0, 1.3])
    same = [a.tokens == b.tokens for a, b in zip(side_a, side_b, strict=True)]
    assert sum(same) <= 1
    assert distinct([s.tokens for s in side_a + side_b]) >= 10
