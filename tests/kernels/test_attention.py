import math

import pytest
import torch

import kernels.attention as attention
from kernels.attention import Documents, packed_attention

MIXED = [1, 16, 17, 40, 3, 16, 2, 33, 17]


def eager(q, k, v, lengths):
    """Attention written out, document by document, with its mask."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    outputs = []
    for qs, ks, vs in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        scores = torch.einsum("ihd,jhd->hij", qs, ks) / math.sqrt(q.shape[2])
        mask = torch.ones(len(qs), len(qs), dtype=torch.bool).triu(1)
        weights = scores.masked_fill(mask, -math.inf).softmax(-1)
        outputs.append(torch.einsum("hij,jhd->ihd", weights, vs))
    return torch.cat(outputs)


def inputs(lengths, heads=4, kv_heads=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(sum(lengths), n, 8, generator=generator, dtype=dtype).requires_grad_()
        for n in (heads, kv_heads, kv_heads)
    ]


def test_documents_by_hand():
    documents = Documents.of([2, 1, 3])
    assert documents.lengths == (2, 1, 3)
    assert documents.cu_seqlens.tolist() == [0, 2, 3, 6]
    assert documents.cu_seqlens.dtype == torch.int32
    assert documents.max_length == 3
    assert documents.positions.tolist() == [0, 1, 0, 0, 1, 2]
    assert documents.last.tolist() == [1, 2, 5]


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_empty_documents_are_refused(lengths):
    with pytest.raises(ValueError, match="Drop empty documents"):
        Documents.of(lengths)


def test_buckets_by_hand():
    buckets = Documents.of([3, 17, 2]).buckets
    assert buckets.shapes == ((2, 3), (1, 17))
    assert buckets.source.tolist() == [0, 1, 2, 20, 21, 21, *range(3, 20)]
    assert buckets.target.tolist() == [0, 1, 2, *range(6, 23), 3, 4]
    assert not buckets.in_place


@pytest.mark.parametrize(("lengths", "in_place"), [([5], True), ([20, 20], True), ([4, 5], False)])
def test_rows_without_padding_stay_where_they_are(lengths, in_place):
    assert Documents.of(lengths).buckets.in_place is in_place


@pytest.mark.parametrize("lengths", [MIXED, [23], [20, 20, 20]])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_output_and_gradients_equal_the_eager_twin(lengths, kv_heads):
    ours, twin = inputs(lengths, kv_heads=kv_heads), inputs(lengths, kv_heads=kv_heads)
    out = packed_attention(*ours, Documents.of(lengths))
    expected = eager(*twin, lengths)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for a, b in zip(ours, twin, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("value", [1e3, math.nan])
def test_an_edited_document_leaves_the_others_alone(value):
    documents = Documents.of(MIXED)
    edited = slice(documents.cu_seqlens[4], documents.cu_seqlens[5])
    others = torch.ones(sum(MIXED), dtype=torch.bool)
    others[edited] = False
    results = []
    for edit in (False, True):
        q, k, v = inputs(MIXED, kv_heads=2, dtype=torch.float32)
        with torch.no_grad():
            for x in (q, k, v):
                x[edited] = value if edit else x[edited]
        out = packed_attention(q, k, v, documents)
        out[others].sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for before, after in zip(*results, strict=True):
        assert torch.equal(before[others], after[others])


def test_this_torch_has_the_variable_length_kernel():
    kernel, has_gqa = attention._varlen_kernel()
    assert callable(kernel)
    assert has_gqa


@pytest.mark.parametrize("has_gqa", [True, False])
def test_variable_length_kernel_is_called_causally(monkeypatch, has_gqa):
    calls = []

    def fake_kernel(q, k, v, cu_q, cu_k, max_q, max_k, **options):
        calls.append(options)
        assert cu_q is cu_k
        assert max_q == max_k == 40
        assert k.shape[1] == (2 if has_gqa else 4)
        return eager(q, k, v, cu_q.diff().tolist())

    monkeypatch.setattr(attention, "_varlen_kernel", lambda: (fake_kernel, has_gqa))
    documents = Documents.of(MIXED)
    qkv = inputs(MIXED, kv_heads=2)
    out = attention._variable_length_attention(*qkv, documents)
    torch.testing.assert_close(out, packed_attention(*qkv, documents))
    expected = {"window_size": (-1, 0)} | ({"enable_gqa": True} if has_gqa else {})
    assert calls == [expected]
