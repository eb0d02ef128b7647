import math

import pytest
import torch
import torch.nn.functional as F

import kernels.causal_tiles as causal_tiles
from kernels.attention import Documents, packed_attention
from kernels.causal_tiles import Tile, tiled_attention, tiles, worth_tiling


def inputs(length, documents=2, heads=3, dtype=torch.float64):
    """As attention gets them: heads beside each other in memory."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(documents, length, heads, 8, generator=generator, dtype=dtype)
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


def test_tiles_by_hand():
    first, second, third = (slice(i * 128, (i + 1) * 128) for i in range(3))
    assert list(tiles(0, 384)) == [
        Tile(first, first, is_causal=True),
        Tile(second, second, is_causal=True),
        Tile(third, third, is_causal=True),
        Tile(third, second, is_causal=False),
        Tile(slice(128, 384), first, is_causal=False),
    ]


@pytest.mark.parametrize("length", [1, 127, 128, 129, 257, 400, 512, 1000])
def test_every_pair_of_the_triangle_is_in_one_tile(length):
    pairs = torch.zeros(length, length, dtype=torch.int64)
    for tile in tiles(0, length):
        area = pairs[tile.rows, tile.columns]
        area += torch.ones_like(area).tril() if tile.is_causal else torch.ones_like(area)
    assert torch.equal(pairs, torch.ones_like(pairs).tril())


def test_work_beyond_the_triangle_is_half_a_tile_for_each_row():
    work = sum(
        (t.rows.stop - t.rows.start) * (t.columns.stop - t.columns.start) for t in tiles(0, 512)
    )
    assert work == 512 * 512 * 10 // 16


@pytest.mark.parametrize("length", [1, 128, 129, 257, 300, 511, 640])
def test_output_and_gradients_equal_the_eager_twin(length):
    qkv = inputs(length)
    output, expected = tiled_attention(*qkv), eager(*qkv)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-13)
    for ours, theirs in zip(gradients(output, *qkv), gradients(expected, *qkv), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_in_fp32_it_is_no_less_exact_than_one_call():
    exact = inputs(700)
    rounded = [x.detach().float().requires_grad_() for x in exact]
    expected = [eager(*exact), *gradients(eager(*exact), *exact)]

    def error(attend):
        output = attend(*rounded)
        found = [output, *gradients(output, *rounded)]
        return [(a - b).detach().abs().max().item() for a, b in zip(found, expected, strict=True)]

    one_call = error(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True))
    for ours, theirs in zip(error(tiled_attention), one_call, strict=True):
        assert ours < 2 * theirs


def test_extreme_scores_stay_finite():
    q, k, v = inputs(300, dtype=torch.float32)
    output = tiled_attention(q * 1e4, k, v)
    assert all(torch.isfinite(x).all() for x in (output, *gradients(output, q, k, v)))


def test_the_same_bits_each_time():
    qkv = inputs(520, dtype=torch.float32)
    first, second = (gradients(tiled_attention(*qkv), *qkv) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_long_documents_go_through_tiles(monkeypatch, kv_heads):
    lengths = [300, 20, 290, 512]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(sum(lengths), n, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for n in (4, kv_heads, kv_heads)
    )
    seen = []
    monkeypatch.setattr(
        "kernels.attention.tiled_attention",
        lambda q, k, v: seen.append(q.shape[2]) or tiled_attention(q, k, v),
    )
    output = packed_attention(q, k, v, Documents.of(lengths))
    assert seen == [300, 512]
    monkeypatch.setattr("kernels.attention.worth_tiling", lambda _: False)
    expected = packed_attention(q, k, v, Documents.of(lengths))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-13)
    for ours, theirs in zip(gradients(output, q, k, v), gradients(expected, q, k, v), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "length", "expected"),
    [(torch.float32, 257, True), (torch.float32, 256, False), (torch.bfloat16, 512, False)],
)
def test_only_where_it_pays_and_is_exact(dtype, length, expected):
    assert worth_tiling(torch.empty(1, 1, length, 8, dtype=dtype)) is expected


def test_without_the_kernel_one_call_does_it(monkeypatch):
    monkeypatch.setattr(causal_tiles, "_has_kernel", lambda: False)
    assert not worth_tiling(torch.empty(1, 1, 512, 8))
