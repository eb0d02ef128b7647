"""Trap 14: the response is shifted by one: its first token or its EOS has no loss, or the prompt's
last token has one.

When it bites: advantages belong to the neighbouring token; the model never learns how to begin,
or when to end, and fine-tuning teaches it to write prompts.

Seen to fail with each of these planted in the product:
- rows one too late, one too early, or on the token itself;
- a loss mask shifted to either side, or without its first or last token;
- the last prompt token learned, or the second token of a response first;
- values read after the token in place of before it;
- old log-probs, values or advantages cut from a neighbouring token of the batch;
- the document fed without its last prompt token, or with its EOS as one more row;
- the prompt of one turn taken for the answer of another.
"""

import plain_llama
import pytest
import torch
from trap_models import BOS, EOS, ONE_RANK, causal_lm, random_ids, value_model
from trap_ppo import bench, engine, split, work_dir

from stages.models.batches import Example, collate
from stages.models.finetuning import train_step
from stages.models.rollouts import Trajectory, response_logprobs, response_values, rollout_rows
from stages.text.dialogue import render_demonstration

CPU = torch.device("cpu")
CLOSE = {"rtol": 0, "atol": 2e-5}
SHAPES = [(1, 1), (1, 4), (5, 1), (3, 2), (2, 7), (17, 16)]
"""Tokens of prompt and response."""


def trajectories(shapes):
    return [
        Trajectory(random_ids(p, 2 * i), [*random_ids(r - 1, 2 * i + 1), EOS], True)
        for i, (p, r) in enumerate(shapes)
    ]


@pytest.mark.parametrize(("num_prompt", "num_response"), SHAPES)
def test_every_response_token_is_a_target_and_no_prompt_token_is(num_prompt, num_response):
    (trajectory,) = trajectories([(num_prompt, num_response)])
    flat = collate([trajectory.example], CPU)
    assert flat.targets.tolist() == trajectory.response
    # each is predicted from the tokens before it, the first one from the prompt's last
    before = [num_prompt - 1 + i for i in range(num_response)]
    assert flat.rows.tolist() == before
    assert flat.tokens.tolist() == trajectory.tokens[:-1]


@pytest.mark.parametrize("shapes", [[shape] for shape in SHAPES] + [SHAPES, SHAPES[::-1]])
def test_logprobs_and_values_belong_to_their_tokens(shapes):
    policy, value = causal_lm(0), value_model(1)
    batch = trajectories(shapes)
    logprobs = response_logprobs(policy, batch, 1.0, ONE_RANK)
    values = response_values(value, batch, ONE_RANK)
    expected = [plain_llama.logprobs(policy, t.prompt, t.response).detach() for t in batch]
    torch.testing.assert_close(logprobs.double(), torch.cat(expected), **CLOSE)
    # of the state in which the token was chosen: it has not seen the token
    before = [plain_llama.scores(value, t.tokens)[len(t.prompt) - 1 : -1].detach() for t in batch]
    torch.testing.assert_close(values.double(), torch.cat(before), **CLOSE)


def test_a_value_does_not_see_its_token():
    value, (one,) = value_model(1), trajectories([(3, 4)])
    other = Trajectory(one.prompt, [*one.response[:-1], 9], False)
    assert torch.equal(*(response_values(value, [t], ONE_RANK) for t in (one, other)))


def test_rollouts_are_stored_token_by_token(tmp_path, tokenizer):
    ready = bench(tmp_path, tokenizer)
    rollouts = ready.roll_out()
    prompts = [row | {"source": "s"} for row in ready.prompts.rows]
    for i, row in enumerate(rollout_rows(0, prompts, rollouts)):
        trajectory = rollouts.trajectories[i]
        model = ready.models.policy.module
        expected = plain_llama.logprobs(model, trajectory.prompt, trajectory.response)
        assert row["response_tokens"] == trajectory.response
        assert row["logprobs"] == pytest.approx(expected.tolist(), abs=2e-5)
        values = plain_llama.scores(ready.models.value.module, trajectory.tokens)
        assert row["values"] == pytest.approx(
            values[len(trajectory.prompt) - 1 : -1].tolist(), abs=2e-5
        )


@pytest.mark.parametrize("place", [0, 3, -1])
def test_an_advantage_moves_its_own_token_alone(tmp_path, tokenizer, place):
    """Where one token of a response is worth something, the gradient is that of its log-prob."""
    ready = bench(tmp_path, tokenizer)
    rollouts = ready.roll_out()
    longest = rollouts.lengths.index(8)
    trajectory = rollouts.trajectories[longest]
    rollouts.advantages.zero_()
    split(rollouts.advantages, rollouts)[longest][place] = 1.0
    twin = causal_lm(1, eos_logit=6)
    logprob = plain_llama.logprobs(twin, trajectory.prompt, trajectory.response)[place]
    (-logprob / sum(rollouts.lengths)).backward()
    ready.update(rollouts)
    for name, parameter in twin.named_parameters():
        found = ready.models.policy.gradients[name]
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_loss_of_fine_tuning_is_that_of_the_answer(tmp_path):
    for num_prompt, num_answer in SHAPES:
        (t,) = trajectories([(num_prompt, num_answer)])
        example = Example(t.tokens, [False] * num_prompt + [True] * num_answer)
        model = causal_lm(0)
        expected = -plain_llama.logprobs(model, t.prompt, t.response).mean().item()
        found = train_step(engine(model), [[example]], 1, work_dir(tmp_path))
        assert found == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("system", [None, "walls"])
@pytest.mark.parametrize("learned", [(True,), (False, True), (True, False, True), (True, True)])
def test_of_a_dialogue_the_learned_answers_are_targets(tokenizer, system, learned):
    messages = [{"role": "system", "content": system}] if system else []
    expected = []
    for i, loss in enumerate(learned):
        answer = f"has {i} walls."
        messages += [
            {"role": "user", "content": f"The garden {i}"},
            {"role": "assistant", "content": answer, "loss": loss},
        ]
        expected += [*tokenizer.encode(answer), EOS] if loss else []
    rendered = render_demonstration(messages, tokenizer)
    flat = collate([Example(rendered.tokens, rendered.loss_mask)], CPU)
    assert flat.targets.tolist() == expected
    assert rendered.tokens[0] == BOS
    end_of_prompt = tokenizer.separators.end_instruction
    first_rows = [row for row in flat.rows.tolist() if flat.tokens[row] == end_of_prompt]
    assert len(first_rows) == sum(learned)
