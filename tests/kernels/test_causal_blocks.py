import math
import weakref

import pytest
import torch
import torch.nn.functional as F

import kernels.causal_blocks as causal_blocks
from kernels.attention import Documents, packed_attention
from kernels.causal_blocks import blocked_attention, blocks, worth_blocks


def inputs(length, documents=2, heads=3, dtype=torch.float64):
    """As attention gets them: heads beside each other in memory."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(documents, length, heads, 8, generator=generator, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for _ in range(3)
    ]


def eager(q, k, v):
    """Written out, with its mask."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(mask, -math.inf).softmax(-1) @ v


def gradients(output, *tensors):
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return torch.autograd.grad((output * weights).sum(), tensors)


def test_two_tokens_by_hand():
    """The second query's scores are 0 and ln 3: a quarter of one value, the rest of the other."""
    q = torch.tensor([0.0, math.log(3)], dtype=torch.float64).view(1, 1, 2, 1)
    k = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 1, 2, 1)
    v = torch.tensor([4.0, 8.0], dtype=torch.float64).view(1, 1, 2, 1)
    torch.testing.assert_close(blocked_attention(q, k, v).flatten(), v.new_tensor([4.0, 7.0]))


@pytest.mark.parametrize(
    ("length", "sizes"),
    [(1, [1]), (96, [96]), (97, [49, 48]), (192, [96, 96]), (193, [65, 65, 63]), (512, [86] * 6)],
)
def test_blocks_by_hand(length, sizes):
    found = list(blocks(length))
    assert [b.stop - b.start for b in found] == [*sizes[:-1], length - sum(sizes[:-1])]
    assert [b.start for b in found] == [sum(sizes[:i]) for i in range(len(sizes))]


@pytest.mark.parametrize("length", [1, 2, 96, 97, 300, 511])
def test_output_and_gradients_equal_the_eager_twin(length):
    qkv = inputs(length)
    output, expected = blocked_attention(*qkv), eager(*qkv)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-13)
    for ours, theirs in zip(gradients(output, *qkv), gradients(expected, *qkv), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "factor"), [(torch.float32, 1.2), (torch.bfloat16, 1.5)], ids=str
)
def test_it_is_about_as_exact_as_pytorchs_kernel(dtype, factor):
    rounded = inputs(300, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in rounded]
    expected = [eager(*exact), *gradients(eager(*exact), *exact)]

    def errors(attend):
        output = attend(*rounded)
        found = [output, *gradients(output, *rounded)]
        return [(a - b).detach().norm().item() for a, b in zip(found, expected, strict=True)]

    one_call = errors(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True))
    for ours, theirs in zip(errors(blocked_attention), one_call, strict=True):
        assert ours < factor * theirs


def test_large_scores_are_not_rounded_to_bf16():
    """At 64, two scores that differ by 1/8 are the same number in bf16."""
    q = torch.tensor([0.0, 64.0], dtype=torch.bfloat16).view(1, 1, 2, 1)
    k = torch.tensor([1.0, 1 + 2**-7], dtype=torch.bfloat16).view(1, 1, 2, 1)
    v = torch.tensor([0.0, 1.0], dtype=torch.bfloat16).view(1, 1, 2, 1)
    expected = 1 / (1 + math.exp(-0.5))
    assert blocked_attention(q, k, v)[..., 1, 0].item() == pytest.approx(expected, abs=2**-9)


def test_extreme_scores_stay_finite():
    q, k, v = inputs(300, dtype=torch.float32)
    output = blocked_attention(q * 1e4, k, v)
    assert all(torch.isfinite(x).all() for x in (output, *gradients(output, q, k, v)))


def test_the_same_bits_each_time():
    qkv = inputs(520, dtype=torch.float32)
    first, second = (gradients(blocked_attention(*qkv), *qkv) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("wants_gradients", "most"), [(False, 1), (True, 4)])
def test_probabilities_are_kept_for_gradients_alone(monkeypatch, wants_gradients, most):
    """Of four blocks before the fifth, the last one is still in use."""
    made, alive = [], []
    softmax = torch.Tensor.softmax

    def watched(scores, dim):
        alive.append(sum(ref() is not None for ref in made))
        probabilities = softmax(scores, dim=dim)
        made.append(weakref.ref(probabilities))
        return probabilities

    monkeypatch.setattr(torch.Tensor, "softmax", watched)
    with torch.set_grad_enabled(wants_gradients):
        blocked_attention(*inputs(480))
    assert len(alive) == 5
    assert max(alive) == most


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_documents_go_through_blocks(monkeypatch, kv_heads):
    lengths = [300, 20, 290, 512, 1030]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(sum(lengths), n, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for n in (4, kv_heads, kv_heads)
    )
    seen = []
    monkeypatch.setattr(
        "kernels.attention.blocked_attention",
        lambda q, k, v: seen.append(q.shape[2]) or blocked_attention(q, k, v),
    )
    output = packed_attention(q, k, v, Documents.of(lengths))
    assert seen == [300, 512]
    monkeypatch.setattr("kernels.attention.worth_blocks", lambda _: False)
    expected = packed_attention(q, k, v, Documents.of(lengths))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-13)
    for ours, theirs in zip(gradients(output, q, k, v), gradients(expected, q, k, v), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 8, 128), True), ((1, 8, 127), False), ((64, 1, 16), True), ((1, 1, 1025), False)],
    ids=str,
)
def test_only_where_it_pays(shape, expected):
    """1,024 queries at least, and no document whose probabilities fill the memory."""
    assert worth_blocks(torch.empty(*shape, 8)) is expected


def test_a_longer_block_is_one_number(monkeypatch):
    """The size of a block is a matter of speed alone."""
    qkv = inputs(130)
    whole = gradients(blocked_attention(*qkv), *qkv)
    monkeypatch.setattr(causal_blocks, "_BLOCK", 17)
    for ours, theirs in zip(gradients(blocked_attention(*qkv), *qkv), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
