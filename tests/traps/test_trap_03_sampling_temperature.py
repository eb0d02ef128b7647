"""Trap 3: responses are sampled at a temperature (or with top-p) that the log-prob pass leaves out.

When it bites: the ratio is not 1 before the first update, the clip cuts off gradients at random,
and the KL compares two policies of which neither wrote the text.

Seen to fail with each of these planted in the product:
- the temperature left out of the policy's log-probs, of the reference's, of the update's or of
  early stopping's;
- the temperature multiplied instead of divided by;
- rollouts sampled at temperature 1, or the generator's log-probs taken before the division;
- the temperature left out of the gradient, or of the entropy;
- log-probs renormalised over the tokens that top-p keeps;
- rollouts sampled with top-p 0.9.
"""

import plain_llama
import pytest
import torch
from trap_models import EOS, causal_lm
from trap_ppo import bench, many, plain_entropy, plain_policy_gradients, prompts, split

from kernels.generation import Sampling, generate
from stages import ppo
from stages.models.early_stopping import EarlyStopping

TEMPERATURES = [0.5, 0.7, 1.0, 1.3]
CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(params=TEMPERATURES)
def temperature(request):
    return request.param


@pytest.fixture
def rolled(tmp_path, tokenizer, temperature):
    ready = bench(tmp_path, tokenizer, temperature=temperature)
    return ready, ready.roll_out()


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_the_generator_gives_the_logprobs_of_the_full_distribution(temperature, top_p):
    model = causal_lm(1, eos_logit=6)
    questions = prompts(8).tokens
    out = generate(model, questions, Sampling(8, temperature, top_p), eos_id=EOS, seed=0)
    for prompt, response, found in zip(questions, out.responses, out.logprobs, strict=True):
        expected = plain_llama.logprobs(model, prompt, response, temperature)
        torch.testing.assert_close(torch.tensor(found).double(), expected.detach(), **CLOSE)


def test_recomputed_logprobs_are_those_of_the_temperature(rolled, temperature):
    ready, rollouts = rolled
    for model, flat in (
        (ready.models.policy.module, rollouts.logprobs),
        (ready.models.reference.module, rollouts.ref_logprobs),
    ):
        for trajectory, found in zip(rollouts.trajectories, split(flat, rollouts), strict=True):
            expected = plain_llama.logprobs(
                model, trajectory.prompt, trajectory.response, temperature
            )
            torch.testing.assert_close(found.double(), expected.detach(), **CLOSE)


def test_rollouts_are_drawn_from_what_the_logprobs_say(tmp_path, tokenizer, temperature):
    """The mean surprise of many first tokens is the distribution's entropy, and of no other's."""
    ready = bench(tmp_path, tokenizer, temperature=temperature, max_new_tokens=1)
    drawn = ready.sample(many(prompts(1), 4000), seed=0)
    logits = plain_llama.logits(ready.models.policy.module, drawn[0].prompt)[-1]
    surprise = -(logits / temperature).log_softmax(0)
    entropy = (surprise * (-surprise).exp()).sum().item()
    found = surprise[[trajectory.response[0] for trajectory in drawn]]
    standard_error = found.std().item() / len(drawn) ** 0.5
    assert found.mean().item() == pytest.approx(entropy, abs=4 * standard_error)


def test_the_first_ratio_is_one(rolled):
    ready, rollouts = rolled
    stats = ready.update(rollouts)
    assert stats["ppo/approx_kl"] == pytest.approx(0, abs=1e-10)
    assert stats["ppo/policy_clip_fraction"] == 0
    assert stats["ppo/policy_loss"] == pytest.approx(-rollouts.advantages.mean().item(), abs=1e-5)


def test_entropy_and_gradient_are_those_of_the_temperature(rolled, temperature):
    ready, rollouts = rolled
    entropy = plain_entropy(ready.models.policy.module, rollouts, temperature)
    expected = plain_policy_gradients(ready.models.policy.module, rollouts, temperature)
    stats = ready.update(rollouts)
    assert stats["ppo/entropy"] == pytest.approx(entropy, abs=1e-5)
    for name, found in ready.models.policy.gradients.items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)


def test_early_stopping_measures_the_kl_at_the_temperature(
    tmp_path, tokenizer, temperature, monkeypatch
):
    ready = bench(tmp_path, tokenizer, temperature=temperature)
    drawn = []

    def remembering(*arguments):
        drawn[:] = sample(*arguments)
        return drawn

    sample = ppo.sample
    monkeypatch.setattr(ppo, "sample", remembering)
    found = ppo.evaluate_held_out(
        ready.config, ready.work, ready.models, ready.prompts, EarlyStopping(), 0
    )
    policy, reference = (
        sum(
            plain_llama.logprobs(model, t.prompt, t.response, temperature).sum().item()
            for t in drawn
        )
        for model in (ready.models.policy.module, ready.models.reference.module)
    )
    assert found["held_out/kl"] == pytest.approx((policy - reference) / 12, abs=1e-4)
