import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kernels import decoding, generation
from kernels.attention import Documents
from kernels.generation import Sampling, draw, generate
from kernels.hf_layout import load_causal
from kernels.model import CausalLM, ModelConfig

VOCAB, EOS = 50, 2


@pytest.fixture(scope="module", params=[4, 2], ids=["mha", "gqa"])
def model(request):
    """Weights large enough that distributions are neither flat nor one-hot."""
    config = ModelConfig(VOCAB, 32, 2, 4, request.param, 48, max_seq_len=64)
    model = CausalLM(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.dim() > 1 else 1)
    return model


def random_prompts(num, shortest=3, longest=14):
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(shortest, longest + 1, (num,), generator=generator).tolist()
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def test_greedy_equals_hugging_face(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    prompts = random_prompts(24)
    out = generate(load_causal(tmp_path), prompts, Sampling(20, 0.0), eos_id=EOS, seed=0)
    for prompt, response in zip(prompts, out.responses, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=0,
        )
        assert response == expected[0, len(prompt) :].tolist()
    assert 0 < sum(out.finished) < 24


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_response_does_not_depend_on_its_batch(model, top_p):
    prompts = random_prompts(256)
    sampling = Sampling(12, 1.0, top_p)
    together = generate(model, prompts, sampling, eos_id=EOS, seed=3)
    alone = generate(model, prompts, sampling, eos_id=EOS, seed=3, max_batch_size=1)
    assert together.responses == alone.responses
    assert together.finished == alone.finished
    fewer = generate(model, prompts[:100], sampling, eos_id=EOS, seed=3)
    assert fewer.responses == together.responses[:100]
    other_seed = generate(model, prompts, sampling, eos_id=EOS, seed=4)
    assert other_seed.responses != together.responses


def test_a_response_does_not_depend_on_how_ranks_share_the_prompts(model):
    prompts = random_prompts(64)
    whole = generate(model, prompts, Sampling(12), eos_id=EOS, seed=3)
    for rank in range(3):
        places = range(rank, len(prompts), 3)
        share = [prompts[i] for i in places]
        out = generate(model, share, Sampling(12), eos_id=EOS, seed=3, places=places)
        assert out.responses == whole.responses[rank::3]


@pytest.mark.parametrize("share", [0.0, 0.85, 1.0])
def test_dropping_finished_rows_changes_nothing(model, share, monkeypatch):
    prompts = random_prompts(64)
    expected = generate(model, prompts, Sampling(16), eos_id=EOS, seed=1, max_batch_size=1)
    monkeypatch.setattr(generation, "DROP_BELOW", share)
    out = generate(model, prompts, Sampling(16), eos_id=EOS, seed=1)
    assert out.responses == expected.responses


def test_reading_prompts_in_pieces_changes_nothing(model, monkeypatch):
    prompts = random_prompts(20)
    prompts = prompts + prompts[3:9]  # equal prompts are read once
    expected = generate(model, prompts, Sampling(8), eos_id=EOS, seed=1)
    monkeypatch.setattr(decoding, "_PREFILL_TOKENS", 30)
    assert generate(model, prompts, Sampling(8), eos_id=EOS, seed=1).responses == expected.responses


def trainers_logprobs(model, prompts, responses, temperature=1.0):
    sequences = [p + r for p, r in zip(prompts, responses, strict=True)]
    documents = Documents.of([len(s) for s in sequences])
    starts = documents.cu_seqlens.tolist()
    rows, targets = [], []
    for start, prompt, response in zip(starts[:-1], prompts, responses, strict=True):
        rows += range(start + len(prompt) - 1, start + len(prompt) + len(response) - 1)
        targets += response
    tokens = torch.tensor([t for s in sequences for t in s])
    where = torch.tensor(rows), torch.tensor(targets)
    return model(tokens, documents, *where, temperature, mode="logprobs").logprobs.detach()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.9), (0.0, 1.0)])
def test_logprobs_are_those_of_the_trainer(model, temperature, top_p):
    prompts = random_prompts(32)
    out = generate(model, prompts, Sampling(16, temperature, top_p), eos_id=EOS, seed=2)
    expected = trainers_logprobs(model, prompts, out.responses, temperature or 1.0)
    logprobs = torch.tensor([x for row in out.logprobs for x in row])
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shortest", [3, 14], ids=["mixed prompts", "equal prompts"])
def test_in_bf16_no_step_reads_a_column_that_is_not_written(model, shortest):
    """A step reads 32 columns or all 59, of which it has written fewer."""
    half = copy.deepcopy(model).bfloat16()
    prompts = random_prompts(32, shortest)
    out = generate(half, prompts, Sampling(45), eos_id=EOS, seed=3)
    assert max(len(response) for response in out.responses) == 45
    expected = trainers_logprobs(half, prompts, out.responses)
    logprobs = torch.tensor([x for row in out.logprobs for x in row])
    assert (logprobs - expected).abs().mean() < 0.1


def test_bf16_weights_generate_and_give_fp32_logprobs(model):
    half = copy.deepcopy(model).bfloat16()
    out = generate(half, random_prompts(8), Sampling(6), eos_id=EOS, seed=0)
    assert all(-20 < x <= 0 for row in out.logprobs for x in row)


def test_eos_ends_a_response_and_the_limit_cuts_it(model):
    out = generate(model, random_prompts(200), Sampling(10), eos_id=EOS, seed=0)
    assert 0 < sum(out.finished) < 200
    for response, finished, logprobs in zip(out.responses, out.finished, out.logprobs, strict=True):
        assert len(response) == len(logprobs)
        assert finished == (response[-1] == EOS)
        assert EOS not in response[:-1]
        assert finished or len(response) == 10


def test_equal_prompts_get_different_samples(model):
    out = generate(model, [[3, 4, 5]] * 8, Sampling(12), eos_id=EOS, seed=0)
    assert len({tuple(response) for response in out.responses}) == 8


def test_progress_counts_finished_responses(model):
    calls = []
    generate(
        model,
        random_prompts(30),
        Sampling(10),
        eos_id=EOS,
        seed=0,
        max_batch_size=20,
        on_progress=lambda done, total: calls.append((done, total)),
    )
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert 20 in done
    assert calls[-1] == (30, 30)
    assert {total for _, total in calls} == {30}


def test_no_prompts_no_responses(model):
    assert generate(model, [], Sampling(4), eos_id=EOS, seed=0).responses == []


def test_the_model_can_be_trained_after_generating():
    config = ModelConfig(VOCAB, 32, 1, 4, 4, 48, max_seq_len=37, rope_theta=77.0)
    model = CausalLM(config, torch.Generator().manual_seed(0))
    generate(model, [[3, 4]], Sampling(2), eos_id=EOS, seed=0)
    loss = model(torch.tensor([3, 4]), Documents.of([2]), torch.tensor([0]), torch.tensor([4]))
    loss.backward()
    assert model.lm_head.weight.grad is not None


@pytest.mark.parametrize("length", [0, 61])
def test_a_prompt_that_does_not_fit_is_named(model, length):
    with pytest.raises(ValueError, match=f"Prompt 1 has {length} tokens.*has room for 60"):
        generate(model, [[5] * 60, [5] * length], Sampling(4), eos_id=EOS, seed=0)


@pytest.mark.parametrize(
    "bad", [(0, 1.0, 1.0), (1, -0.1, 1.0), (1, 1e-9, 1.0), (1, 1.0, 0.0), (1, 1.0, 1.1)]
)
def test_sampling_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="out of range"):
        Sampling(*bad)


# ---- one draw, by hand

PROBABILITIES = [0.1, 0.0, 0.5, 0.15, 0.25, 0.0]


def drawn(uniforms, temperature=1.0, top_p=1.0):
    logits = torch.tensor(PROBABILITIES).log().expand(len(uniforms), -1)
    return draw(logits, torch.tensor(uniforms), Sampling(1, temperature, top_p))


def test_draw_inverts_the_cumulative_distribution():
    just_below_1 = 1 - 2**-24
    tokens, logprobs = drawn([0.0, 0.09, 0.11, 0.59, 0.61, 0.74, 0.76, just_below_1])
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3, 4, 4]
    torch.testing.assert_close(logprobs.exp(), torch.tensor(PROBABILITIES)[tokens])


def test_top_p_keeps_the_likeliest_and_not_their_logprobs():
    # 0.5 and 0.25 reach 0.7: drawn with 2/3 and 1/3, likeliest first
    tokens, logprobs = drawn([0.0, 0.66, 0.67, 0.99], top_p=0.7)
    assert tokens.tolist() == [2, 2, 4, 4]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.5, 0.5, 0.25, 0.25]))


def test_the_likeliest_stays_under_a_top_p_that_is_0_in_fp32():
    tokens, _ = drawn([0.0, 0.99], top_p=5e-324)
    assert tokens.tolist() == [2, 2]


def test_temperature_sharpens():
    # at 0.5 probabilities are squared: 0.01, 0.25, 0.0225, 0.0625 of 0.345
    tokens, logprobs = drawn([0.02, 0.03, 0.753, 0.754, 0.818, 0.819], temperature=0.5)
    assert tokens.tolist() == [0, 2, 2, 3, 3, 4]
    torch.testing.assert_close(logprobs[1].exp(), torch.tensor(0.25 / 0.345))


def test_greedy_takes_the_likeliest():
    tokens, logprobs = drawn([0.0, 0.99], temperature=0.0)
    assert tokens.tolist() == [2, 2]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.5, 0.5]))


def test_frequencies_follow_the_distribution():
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0)).tolist()
    tokens, _ = drawn(uniforms)
    shares = torch.bincount(tokens, minlength=6) / len(uniforms)
    # four standard deviations
    torch.testing.assert_close(shares, torch.tensor(PROBABILITIES), rtol=0, atol=0.015)
