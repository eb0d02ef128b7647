"""RMSNorm and SwiGLU: what happens to each row between two matrix products.

Plain torch, or on CUDA the Triton kernels of `kernels.triton_pointwise` where Triton is installed.

Legend: E model dimension, F feed-forward dimension.
"""

import importlib.util
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def rms_norm(
    x: Float[Tensor, "*rows E"], weight: Float[Tensor, " E"], eps: float
) -> Float[Tensor, "*rows E"]:
    """x / sqrt(mean(x²) + eps) · weight; bf16 is computed in fp32 and rounded."""
    if runs_on_triton(x):
        from kernels import triton_pointwise

        return triton_pointwise.rms_norm(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def swiglu(gate_up: Float[Tensor, "*rows 2*F"]) -> Float[Tensor, "*rows F"]:
    """silu(gate) · up of the two halves of every row."""
    if runs_on_triton(gate_up):
        from kernels import triton_pointwise

        return triton_pointwise.swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def runs_on_triton(x: Tensor) -> bool:
    """Whether Triton's kernels take this tensor. They compute in fp32: float64 is not theirs."""
    return x.is_cuda and x.dtype != torch.float64 and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
