"""RMSNorm and SwiGLU: what happens to each row between two matrix products.

On CUDA these are the Triton kernels of `kernels.triton_pointwise` where Triton is installed.
Elsewhere they are autograd functions in plain torch, which keep fewer tensors and pass over memory
less often than autograd's chain of elementary operations (RMSNorm, forward and backward: a third
of the time of `F.rms_norm` on CPU).

Legend: E model dimension, F feed-forward dimension.
"""

import importlib.util
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def rms_norm(
    x: Float[Tensor, "*rows E"], weight: Float[Tensor, " E"], eps: float
) -> Float[Tensor, "*rows E"]:
    """x / sqrt(mean(x²) + eps) · weight; bf16 is computed in fp32 and rounded."""
    if runs_on_triton(x):
        from kernels import triton_pointwise

        return triton_pointwise.rms_norm(x, weight, eps)
    if torch.is_grad_enabled():
        return _RmsNorm.apply(x, weight, eps)
    return _normalised(x, weight, eps)[0]


def swiglu(gate_up: Float[Tensor, "*rows 2*F"]) -> Float[Tensor, "*rows F"]:
    """silu(gate) · up of the two halves of every row."""
    if runs_on_triton(gate_up):
        from kernels import triton_pointwise

        return triton_pointwise.swiglu(gate_up)
    if torch.is_grad_enabled():
        return _SwiGlu.apply(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class _RmsNorm(Function):
    """Keeps its input and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = _normalised(x, weight, eps)
        ctx.save_for_backward(x, inverse)
        # The parameter itself, not a saved tensor: ZeRO-3 gathers it anew, at another address.
        ctx.weight = weight
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        """With r = 1/sqrt(mean(x²) + eps): r·g·w - x · r³/E · Σ(g·w·x), and g·x·r over the rows."""
        x, inverse = ctx.saved_tensors
        wide, grad, gain = (t.to(inverse.dtype) for t in (x, grad_outputs[0], ctx.weight))
        width = x.shape[-1]
        along = grad * wide
        dot = (along @ gain).unsqueeze(-1)
        grad_weight = inverse.reshape(1, -1).mm(along.view(-1, width)).squeeze(0)
        factor = inverse.pow(3).mul_(dot).div_(width)
        grad_x = torch.mul(grad, gain, out=along).mul_(inverse).addcmul_(wide, factor, value=-1)
        return grad_x.to(x.dtype), grad_weight.to(ctx.weight.dtype), None


class _SwiGlu(Function):
    """Writes both halves of the gradient into one tensor.

    silu(gate) is kept: to make it again costs a third of the backward pass on CPU.
    """

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        active = F.silu(gate)
        ctx.save_for_backward(gate_up, active)
        return active * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        gate_up, active = ctx.saved_tensors
        (grad,) = grad_outputs
        gate, up = gate_up.chunk(2, dim=-1)
        both = torch.empty_like(gate_up)
        grad_gate, grad_up = both.chunk(2, dim=-1)
        torch.mul(grad, active, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return both


def _normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised rows, and the inverse of each row's root mean square in fp32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * inverse).mul_(weight).to(x.dtype), inverse


def runs_on_triton(x: Tensor) -> bool:
    """Whether Triton's kernels take this tensor. They compute in fp32: float64 is not theirs."""
    return x.is_cuda and x.dtype != torch.float64 and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
