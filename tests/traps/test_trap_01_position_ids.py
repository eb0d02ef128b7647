"""Trap 1: position ids are counted through the padding, so that a token's place depends on its
neighbours in the batch.

When it bites: nothing fails; sampling, old log-probs and update see other distances between the
same tokens, and the ratio and the KL measure padding.

Seen to fail with each of these planted in the product:
- positions counted through a whole flat batch;
- positions that begin at 1;
- documents of a bucket padded at their start;
- a cache whose next position is the longest prompt's length, for every row;
- a cache whose next position is one too far, or stays where it is;
- the columns between a prompt and the longest one attended to, or its own last one hidden;
- rows that leave the cache without their positions, or without their padding;
- a prompt's logits read at the end of the longest prompt, or those of another prompt where equal
  ones are read once.
"""

import plain_llama
import pytest
import torch
from trap_models import HEADS, causal_lm, flat, random_ids, reward_model, value_model

from kernels import decoding
from kernels.attention import Documents
from kernels.decoding import prefill

CLOSE = {"rtol": 0, "atol": 1e-5}  # rotary factors are fp32 in every model


@pytest.fixture(params=HEADS.values(), ids=HEADS.keys())
def num_kv_heads(request):
    return request.param


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("num_pads", [0, 1, 2, 5, 12, 18])
def test_logits_are_those_without_padding(num_kv_heads, num_pads):
    model = causal_lm(0, num_kv_heads)
    document, longer = random_ids(4, 1), random_ids(4 + num_pads, 2)
    expected = [plain_llama.logits(model, d) for d in (longer, document, longer)]
    documents = Documents.of([len(longer), len(document), len(longer)])
    found = model.logits(flat([longer, document, longer]), documents)
    torch.testing.assert_close(found.double(), torch.cat(expected), **CLOSE)


@pytest.mark.parametrize("num_pads", [0, 1, 7, 14])
def test_values_and_scores_are_those_without_padding(num_kv_heads, num_pads):
    document, longer = random_ids(5, 3), random_ids(5 + num_pads, 4)
    documents = Documents.of([len(document), len(longer)])
    value, reward = value_model(1, num_kv_heads), reward_model(2, num_kv_heads)
    values = value(flat([document, longer]), documents)
    expected = torch.cat([plain_llama.scores(value, d) for d in (document, longer)])
    torch.testing.assert_close(values.double(), expected, **CLOSE)
    scores = reward(flat([document, longer]), documents)
    last = torch.stack([plain_llama.scores(reward, d)[-1] for d in (document, longer)])
    torch.testing.assert_close(scores.double(), last, **CLOSE)


def test_positions_begin_at_zero_in_every_document():
    assert Documents.of([3, 1, 2]).positions.tolist() == [0, 1, 2, 0, 0, 1]


@pytest.mark.parametrize("num_pads", [0, 1, 2, 5, 12, 18])
@pytest.mark.parametrize("num_tokens_read_at_a_time", [7, 1024])
def test_a_cache_goes_on_where_each_prompt_ends(
    num_kv_heads, num_pads, num_tokens_read_at_a_time, monkeypatch
):
    """Three tokens written after prompts of unequal length, then three more without two rows."""
    monkeypatch.setattr(decoding, "_PREFILL_TOKENS", num_tokens_read_at_a_time)
    model = causal_lm(0, num_kv_heads)
    prompts = [random_ids(n, n) for n in (5, 4, 4, 4 + num_pads, 3)]  # the second and third equal
    written = [random_ids(6, 50 + row) for row in range(5)]
    decoder, logits = prefill(model, prompts, num_new_columns=6)
    assert decoder.cache.positions.tolist() == [len(prompt) for prompt in prompts]
    found = {row: [logits[row]] for row in range(5)}
    rows = [0, 1, 2, 3, 4]
    for step in range(6):
        if step == 3:
            decoder.keep(torch.tensor([0, 2, 3]))
            rows = [0, 2, 3]
        logits = decoder.step(torch.tensor([written[row][step] for row in rows]))
        for i, row in enumerate(rows):
            found[row].append(logits[i])

    for row, prompt in enumerate(prompts):
        expected = plain_llama.logits(model, prompt + written[row])[len(prompt) - 1 :]
        own = torch.stack(found[row]).double()
        torch.testing.assert_close(own, expected[: len(own)], **CLOSE)
