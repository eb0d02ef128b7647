"""Matrix products in fp32 on the CPU, by oneDNN where PyTorch itself would take MKL.

Both libraries come with PyTorch. MKL uses AVX-512 on the processors of one maker only, oneDNN on
all: on two cores of an AMD EPYC 400 to 480 GFLOP/s against 200. It is the same fp32 on both sides,
nothing is rounded to a shorter format in between.

oneDNN writes machine code for each new shape, 0.2 to 0.4 ms once, and documents end to end hardly
ever have the same length twice: there, small products stay with MKL. The few rows of a decoding
step are the same number for many steps. Which library takes a product depends on its shape alone,
so that a run that is resumed takes the same ones.

Legend: M rows, I and O the sides of a weight, K the side that a product sums over.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

FEWEST_MULTIPLICATIONS = 2**25
"""Below, writing the code costs more than it saves once: 0.35 ms at the speed of MKL."""
FEWEST_OF_A_STEP = 2**22
"""The same for a decoding step: below, MKL is as fast."""
_ROWS_OF_A_STEP = 256
"""Most rows that are taken for a decoding step."""
_ELEMENTS_AT_A_TIME = 2**22
"""Of a product that is added to something (16 MiB)."""


def linear(x: Float[Tensor, "*rows I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*rows O"]:
    """`x @ weight.T`, differentiable once."""
    if not worth_onednn(x, x.shape[:-1].numel(), *weight.shape):
        return F.linear(x, weight)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight)
    return _onednn(x, weight)


def product(
    a: Float[Tensor, "M K"], b: Float[Tensor, "K N"], out: Float[Tensor, "M N"] | None = None
) -> Float[Tensor, "M N"]:
    """`a @ b`, not differentiable; copied to `out` where it is given."""
    if not worth_onednn(a, a.shape[0], *b.shape):
        return torch.mm(a, b, out=out)
    result = _onednn(a, b.t())
    return result if out is None else out.copy_(result)


def weight_gradient(grad: Float[Tensor, "M O"], x: Float[Tensor, "M I"]) -> Float[Tensor, "O I"]:
    """`grad.T @ x`, not differentiable.

    oneDNN is faster by half where the result has no more rows than columns: else it is made
    transposed.
    """
    num_rows, outer = grad.shape
    inner = x.shape[1]
    if not worth_onednn(x, num_rows, inner, outer):
        return torch.mm(grad.t(), x)
    return _onednn(grad.t(), x.t()) if outer <= inner else _onednn(x.t(), grad.t()).t()


def add_weight_gradient_(
    total: Float[Tensor, "O I"], grad: Float[Tensor, "M O"], x: Float[Tensor, "M I"]
) -> None:
    """`total += grad.T @ x`; beside the total, a few rows of the product exist at a time."""
    if not worth_onednn(x, grad.shape[0], x.shape[1], grad.shape[1]):
        total.addmm_(grad.t(), x)
        return
    size = max(1, _ELEMENTS_AT_A_TIME // x.shape[1])
    for rows, part in zip(total.split(size), grad.split(size, dim=1), strict=True):
        rows.add_(weight_gradient(part, x))


def worth_onednn(x: Tensor, num_rows: int, inner: int, outer: int) -> bool:
    """Whether oneDNN takes a product of these sides.

    Twice as fast on AMD's processors with AVX-512, and as fast as MKL on Intel's.
    """
    fewest = FEWEST_OF_A_STEP if num_rows <= _ROWS_OF_A_STEP else FEWEST_MULTIPLICATIONS
    is_single = x.device.type == "cpu" and x.dtype == torch.float32
    return is_single and num_rows * inner * outer >= fewest and _is_here()


@cache
def _is_here() -> bool:
    """Whether this PyTorch and this processor have it; the operator is not part of the API."""
    has_operator = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_operator and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    operands = _dense(x), _dense(weight)
    return torch.ops.mkldnn._linear_pointwise(*operands, None, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """Rows or columns end to end: for some other strides oneDNN is a thousand times as slow."""
    is_dense = matrix.is_contiguous() or (matrix.dim() == 2 and matrix.t().is_contiguous())
    return matrix if is_dense else matrix.contiguous()


class _Linear(Function):
    """Keeps its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        # The parameter itself: ZeRO-3 gathers it anew, and what activation checkpointing saves and
        # makes again are tensors.
        ctx.weight = weight
        return _onednn(x, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x,) = ctx.saved_tensors
        grad = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        wants_x, wants_weight = ctx.needs_input_grad
        grad_x = product(grad, ctx.weight).view_as(x) if wants_x else None
        return grad_x, weight_gradient(grad, x.reshape(len(grad), -1)) if wants_weight else None
