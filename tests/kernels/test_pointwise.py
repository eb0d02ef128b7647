"""The autograd functions between matrix products against their formulas in float64."""

import pytest
import torch
import torch.nn.functional as F

from kernels.pointwise import rms_norm, swiglu


def _leaves(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def test_rms_norm_by_hand():
    found = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), eps=0.0)
    torch.testing.assert_close(found, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


def test_swiglu_by_hand():
    found = swiglu(torch.tensor([[0.0, 1.0, 5.0, 2.0]]))  # gates 0 and 1, ups 5 and 2
    torch.testing.assert_close(found, torch.tensor([[0.0, 2 / (1 + 2.718281828**-1)]]))


@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6), (1, 6), (0, 6)], ids=str)
def test_gradients_are_those_of_finite_differences(shape):
    x, weight = _leaves(shape, shape[-1:], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, weight))
    assert torch.autograd.gradcheck(swiglu, (x,))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=str
)
def test_values_and_gradients_are_those_of_torch_in_float64(dtype, tolerance):
    x, weight, gate_up, grad = _leaves((33, 64), (64,), (33, 128), (33, 64), dtype=dtype)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, gate_up)]
    exact_norm = F.rms_norm(exact[0], (64,), exact[1], 1e-5)
    exact_gated = F.silu(exact[2][:, :64]) * exact[2][:, 64:]
    pairs = [(rms_norm(x, weight, 1e-5), exact_norm), (swiglu(gate_up), exact_gated)]
    for found, expected in pairs:
        assert found.dtype == dtype
        found.backward(grad.detach())
        expected.backward(grad.detach().double())
    pairs += [(t.grad, e.grad) for t, e in zip((x, weight, gate_up), exact, strict=True)]
    for found, expected in pairs:
        assert (found.double() - expected).norm() < tolerance * expected.norm()


def test_values_are_the_same_with_and_without_gradients():
    x, weight = _leaves((5, 8), (8,))
    with torch.no_grad():
        plain = rms_norm(x, weight, 1e-5), swiglu(x)
    assert torch.equal(plain[0], rms_norm(x, weight, 1e-5))
    assert torch.equal(plain[1], swiglu(x))


def test_the_gain_is_read_anew_in_the_backward_pass():
    """ZeRO-3 empties a parameter after the forward pass and fills another storage later."""
    x, weight = _leaves((5, 8), (8,))
    expected = torch.autograd.grad(rms_norm(x, weight, 1e-5).sum(), x)
    again = weight.detach().clone()
    y = rms_norm(x, weight, 1e-5)
    weight.data.fill_(float("nan"))
    weight.data = torch.empty(0)
    weight.data = again
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected[0])


def test_nothing_else_is_kept():
    kept = []
    x, weight = _leaves((5, 8), (8,))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        swiglu(rms_norm(x, weight, 1e-5))
    # the norm's input and a number a row; the gate's input and silu(gate)
    assert sum(t.numel() for t in kept) == 5 * 8 + 5 + 5 * 8 + 5 * 4
