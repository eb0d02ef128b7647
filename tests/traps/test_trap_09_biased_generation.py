"""Trap 9: generation settings such as a minimum length or top-k draw responses from another
distribution than the policy's.

When it bites: the log-ratio of what such sampling prefers is negative on average, so the KL term
becomes a reward for leaving the reference; tokens that may not be drawn are never unlearned.

Seen to fail with each of these planted in the product:
- rollouts drawn with top-k 50, top-p 0.95 or min-p 0.05;
- no EOS before the second token, or the EOS made half or twice as likely;
- a penalty on tokens of the prompt, or on those already written;
- the likeliest token taken one time in twenty;
- uniform numbers that never come above 0.9, or are the same for every row;
- responses without an EOS drawn again;
- such settings accepted, or passed over without a word.
"""

import plain_llama
import pytest
import torch
from pydantic import ValidationError
from trap_models import EOS, ONE_RANK
from trap_ppo import bench, many, prompts

from data_contracts.errors import UserError
from flows.recipe import load_recipe
from kernels.attention import Documents
from stages.models.ppo_update import BIASED_SAMPLING
from stages.models.prompts import Prompts
from stages.models.rollouts import per_token
from stages.ppo import PpoSettings

NUM_DRAWS = 20_000


@pytest.mark.parametrize("name", sorted(BIASED_SAMPLING))
def test_such_settings_are_refused_with_the_reason(name):
    reason = f"sampling with {name} is refused: PPO's ratio and KL hold for .* Leave it out"
    with pytest.raises(ValidationError, match=reason):
        PpoSettings.model_validate({name: 1})
    with pytest.raises(UserError, match=f"ppo: {reason}"):
        load_recipe("demo", [f"ppo.{name}=1"])


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_greedy_rollouts_are_refused(temperature):
    with pytest.raises(ValidationError, match="greater than 0"):
        PpoSettings.model_validate({"temperature": temperature})


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_first_tokens_follow_the_distribution(tmp_path, tokenizer, temperature):
    """Each token, the EOS, the prompt's tokens together, and the unlikeliest half together."""
    ready = bench(tmp_path, tokenizer, temperature=temperature, max_new_tokens=1)
    prompt = [1, *range(20, 60)]
    question = Prompts([{"prompt_id": "p", "domain": "safety"}], [prompt])
    drawn = [t.response[0] for t in ready.sample(many(question, NUM_DRAWS), seed=1)]
    shares = torch.bincount(torch.tensor(drawn), minlength=300) / NUM_DRAWS
    probabilities = plain_probabilities(ready, prompt, temperature)
    assert probabilities[EOS] > 0.03
    close(shares, probabilities)
    close(shares[prompt].sum(), probabilities[prompt].sum())
    unlikely = probabilities.argsort()[:150]
    close(shares[unlikely].sum(), probabilities[unlikely].sum())


def close(share, probability):
    deviation = (probability * (1 - probability) / NUM_DRAWS).sqrt()
    assert ((share - probability).abs() <= 4.5 * deviation + 1 / NUM_DRAWS).all()


def plain_probabilities(ready, prompt, temperature):
    return (
        (plain_llama.logits(ready.models.policy.module, prompt)[-1] / temperature)
        .softmax(0)
        .detach()
    )


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_later_tokens_follow_the_distribution(tmp_path, tokenizer, temperature):
    """A fair draw is as surprising as the entropy says, at every place of the response."""
    ready = bench(tmp_path, tokenizer, temperature=temperature)
    drawn = ready.sample(many(prompts(12), 100), seed=2)

    def excess(flat):
        options = {"temperature": temperature, "mode": "logprobs"}
        model = ready.models.policy
        found = model(flat.tokens, flat.documents, flat.rows, flat.targets, **options)
        return -found.logprobs - found.entropy

    by_response = per_token(excess, drawn, ONE_RANK).split([len(t.response) for t in drawn])
    for place in range(8):
        found = torch.stack([x[place] for x in by_response if len(x) > place])
        standard_error = found.std() / len(found) ** 0.5
        assert found.mean().abs() <= 4 * standard_error, place


def test_an_eos_is_as_likely_at_every_place_as_the_policy_says(tmp_path, tokenizer):
    ready = bench(tmp_path, tokenizer)
    drawn = ready.sample(many(prompts(12), 200), seed=3)
    tokens = torch.tensor([token for t in drawn for token in t.tokens])
    documents = Documents.of([len(t.tokens) for t in drawn])
    with torch.no_grad():
        probability = ready.models.policy.module.logits(tokens, documents).softmax(-1)[:, EOS]
    for place in range(8):
        rows, ended = [], []
        for start, t in zip(documents.cu_seqlens.tolist(), drawn, strict=False):
            if len(t.response) > place:
                rows.append(start + len(t.prompt) - 1 + place)
                ended.append(t.response[place] == EOS)
        expected = probability[rows]
        deviation = (expected * (1 - expected)).sum().sqrt()
        assert abs(sum(ended) - expected.sum()) <= 4 * deviation, place
