"""The work that benchmarks make up is what they say it is."""

import numpy as np
import pytest
import torch
from tiny_sizes import SIZES, TINY

from benchmarks import generation, reward_model, sft
from benchmarks.artifacts import prompt_rows, tokenizer
from benchmarks.shapes import BOS_ID, EOS_ID, SMALL, backbone_flops, output_flops, policy
from kernels.generation import Sampling, generate
from stages.text.dialogue import render_prompt


def test_demonstrations_fill_the_steps_and_no_more():
    size = SIZES["sft"]
    examples = sft.demonstrations(size, 3)
    assert sft.num_sequences(examples, size) == 3 * size.global_batch_size
    assert all(e.tokens[0] == BOS_ID and e.tokens[-1] == EOS_ID for e in examples)
    assert all(len(e.tokens) <= size.sequence_length for e in examples)


def test_demonstrations_of_the_real_size_are_of_varied_length():
    lengths = [len(e.tokens) for e in sft.demonstrations(sft.Size(), 12)]
    assert np.median(lengths) == pytest.approx(sft.MEDIAN_TOKENS, rel=0.1)
    assert np.std(lengths) > 0.4 * np.mean(lengths)


def test_pairs_share_their_prompt_and_fit():
    size = reward_model.Size()
    for pair in reward_model.pairs(size, 10):
        assert max(len(pair.chosen), len(pair.rejected)) <= size.max_tokens
        assert pair.chosen[:2] == pair.rejected[:2]
        assert pair.chosen != pair.rejected


def test_prompts_render_to_the_length_asked_for():
    vocabulary = tokenizer(TINY.vocab_size)
    rows = prompt_rows(5, 20, TINY.vocab_size)
    assert [len(render_prompt(row["messages"], vocabulary)) for row in rows] == [20] * 5


def test_a_model_with_an_ending_writes_responses_of_that_mean():
    model = generation.with_ending(policy(TINY), 1 / 5)
    out = generate(model, [[5, 6]] * 400, Sampling(max_new_tokens=60), eos_id=EOS_ID, seed=0)
    mean = np.mean([len(response) for response in out.responses])
    assert mean == pytest.approx(5, abs=3 * np.sqrt(20 / 400))  # a geometric length's deviation


def test_tokens_written_end_with_the_first_eos():
    responses = torch.tensor([[7, EOS_ID, 0, 0], [7, 8, 9, 7], [EOS_ID, 0, 0, 0]])
    assert generation.num_written(responses) == 2 + 4 + 1


def test_arithmetic_of_a_training_step_is_that_of_the_model():
    # The model's own convention counts the embedding's matrix and the whole attention square.
    forward = backbone_flops(SMALL, 512) + output_flops(SMALL)
    embedding = 2.0 * SMALL.vocab_size * SMALL.dim
    assert 3 * (forward + embedding) == pytest.approx(SMALL.flops_per_token(512), rel=1e-3)
