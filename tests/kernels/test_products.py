"""Matrix products by oneDNN against float64, and who takes which."""

import pytest
import torch
import torch.nn.functional as F

from kernels import products
from kernels.products import add_weight_gradient_, linear, product, weight_gradient

needs_onednn = pytest.mark.skipif(
    not products._is_here(), reason="this processor has no AVX-512: MKL takes every product"
)
SHAPES = [(5, 3, 7), (64, 48, 16), (33, 16, 48), (1, 8, 4)]
"""Rows, inner and outer side of a weight; the last two wider and narrower than the input."""


@pytest.fixture
def _always_onednn(monkeypatch):
    monkeypatch.setattr(products, "FEWEST_MULTIPLICATIONS", 0)
    monkeypatch.setattr(products, "FEWEST_OF_A_STEP", 0)


def _tensors(rows, inner, outer, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, inner), (outer, inner), (rows, outer)
    return [torch.randn(s, generator=generator).to(dtype) for s in shapes]


def _close(found, expected):
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() < 1e-6 * expected.norm()


@needs_onednn
@pytest.mark.usefixtures("_always_onednn")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("wants", [(True, True), (True, False), (False, True)], ids=str)
def test_values_and_gradients_are_those_of_float64(shape, wants):
    x, weight, grad = _tensors(*shape)
    exact = [t.double().requires_grad_() for t in (x, weight)]
    x.requires_grad_(wants[0])
    weight.requires_grad_(wants[1])
    found = linear(x, weight)
    expected = F.linear(*exact)
    _close(found, expected)
    found.backward(grad)
    expected.backward(grad.double())
    for ours, theirs, is_wanted in zip((x, weight), exact, wants, strict=True):
        if is_wanted:
            _close(ours.grad, theirs.grad)
        else:
            assert ours.grad is None


@needs_onednn
@pytest.mark.usefixtures("_always_onednn")
def test_rows_may_have_several_dimensions_and_any_strides():
    x, weight, _ = _tensors(24, 8, 6)
    folded = x.view(2, 12, 8).transpose(0, 1).requires_grad_()
    found = linear(folded, weight)
    _close(found, F.linear(folded.double(), weight.double()))
    found.sum().backward()
    _close(folded.grad, weight.double().sum(0).expand(12, 2, 8))


@needs_onednn
@pytest.mark.usefixtures("_always_onednn")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_outside_of_autograd(shape):
    x, weight, grad = _tensors(*shape)
    out = torch.empty(len(x), len(weight))
    assert product(x, weight.t(), out=out) is out
    _close(out, x.double() @ weight.double().t())
    expected = grad.double().t() @ x.double()
    _close(weight_gradient(grad, x), expected)
    total = torch.ones_like(weight)
    add_weight_gradient_(total, grad, x)
    _close(total, 1 + expected)


@needs_onednn
def test_no_bf16_in_between():
    """1 + 2⁻²⁰ is a number of fp32 and of no shorter format."""
    weight = torch.full((256, 512), 1 + 2.0**-20)
    x = torch.eye(512)[:256]
    assert products.worth_onednn(x, 256, 512, 256)
    assert torch.equal(linear(x, weight), weight.t()[:256])


@needs_onednn
@pytest.mark.parametrize(
    ("rows", "outer", "expected"),
    [
        (31, 512, False),
        (32, 512, True),
        (256, 64, True),
        (257, 256, False),
        (511, 256, False),
        (512, 256, True),
    ],
)
def test_a_decoding_step_has_a_lower_bar_than_a_batch(rows, outer, expected):
    """2²² multiplications up to 256 rows, 2²⁵ beyond."""
    x = torch.empty(rows, 256)
    assert products.worth_onednn(x, rows, 256, outer) is expected


@needs_onednn
@pytest.mark.usefixtures("_always_onednn")
def test_a_sum_is_made_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(products, "_ELEMENTS_AT_A_TIME", 2 * 3)
    x, weight, grad = _tensors(5, 3, 7)
    sizes = []
    made = products.weight_gradient
    monkeypatch.setattr(
        products, "weight_gradient", lambda g, x: sizes.append(g.shape[1]) or made(g, x)
    )
    total = torch.ones_like(weight)
    add_weight_gradient_(total, grad, x)
    assert sizes == [2, 2, 2, 1]
    _close(total, 1 + grad.double().t() @ x.double())


@needs_onednn
@pytest.mark.usefixtures("_always_onednn")
@pytest.mark.parametrize(
    ("rows", "columns"), [(slice(1, 7), slice(2, 10)), (slice(None, None, 2), slice(0, 8))]
)
def test_slices_are_made_dense_first(monkeypatch, rows, columns):
    """oneDNN's general code takes a thousand times as long as the code that it writes."""
    wide = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    part, x = wide[rows, columns], torch.randn(6, 5)
    seen = []
    made = products._dense
    monkeypatch.setattr(products, "_dense", lambda m: seen.append(made(m)) or seen[-1])
    _close(weight_gradient(part, x), part.double().t() @ x.double())
    assert all(m.is_contiguous() or m.t().is_contiguous() for m in seen)


@needs_onednn
@pytest.mark.usefixtures("_always_onednn")
def test_one_row_may_be_a_vector():
    x, weight, grad = _tensors(1, 3, 7)
    x = x[0].requires_grad_()
    weight.requires_grad_()
    out = linear(x, weight)
    assert out.shape == (7,)
    out.backward(grad[0])
    _close(x.grad, grad[0].double() @ weight.detach().double())
    _close(weight.grad, torch.outer(grad[0], x.detach()).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_only_fp32_is_taken(dtype):
    x, weight, _ = _tensors(512, 512, 512, dtype)
    assert not products.worth_onednn(x, 512, 512, 512)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_without_the_operator_pytorch_does_it(monkeypatch):
    monkeypatch.setattr(products, "_is_here", lambda: False)
    x, weight, _ = _tensors(512, 512, 512)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


@needs_onednn
@pytest.mark.usefixtures("_always_onednn")
def test_the_weight_is_read_anew_in_the_backward_pass():
    """ZeRO-3 empties a parameter after the forward pass and fills another storage later; with
    activation checkpointing, saved tensors are made again."""
    x, weight, grad = _tensors(5, 3, 7)
    x.requires_grad_()
    parameter = torch.nn.Parameter(weight.clone())
    out = linear(x, parameter)
    parameter.data = torch.empty(0)
    parameter.data = weight.clone()
    out.backward(grad)
    _close(x.grad, grad.double() @ weight.double())
    _close(parameter.grad, grad.double().t() @ x.detach().double())


@needs_onednn
def test_the_same_bits_each_time():
    x, weight, _ = _tensors(4096, 128, 96)
    weight.requires_grad_()
    found = []
    for _ in range(2):
        weight.grad = None
        out = linear(x, weight)
        out.square().sum().backward()
        found.append((out.detach(), weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
