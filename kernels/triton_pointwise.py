"""RMSNorm, SwiGLU and the rotary turn as Triton kernels, forward and backward.

Between two matrix products a GPU waits for memory, so each of these reads its input once and writes
its output once. Everything is computed in fp32 and rounded on the way out. `kernels.pointwise` and
`kernels.rope` hold the plain twins and call these on CUDA; this module imports Triton and is not
imported elsewhere.

Every launch is a record before it runs, so that a machine without a GPU can compile exactly what
a GPU would run.

Legend: T rows, E model dimension, F feed-forward dimension, H heads, D head dimension, C = D/2
rotated pairs, P programs.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Complex, Float
from torch import Tensor
from torch.autograd import Function

_BLOCK = 4096
"""Elements that a program of the rotary kernel turns at most."""


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and its arguments, by the names of its parameters."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    """Arguments that the kernel is compiled for."""
    num_warps: int

    def run(self) -> None:
        """Start it on the current device."""
        self.kernel[self.grid](**self.arguments, **self.constants, num_warps=self.num_warps)


# ------------------------------------------------------------------ RMSNorm


def rms_norm(
    x: Float[Tensor, "*rows E"], weight: Float[Tensor, " E"], eps: float
) -> Float[Tensor, "*rows E"]:
    """x / sqrt(mean(x²) + eps) · weight."""
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = _rows(x)
        y = torch.empty_like(rows, memory_format=torch.contiguous_format)
        scales = rows.new_empty(len(rows), dtype=torch.float32)
        rms_norm_forward(rows, weight, y, scales, eps).run()
        ctx.save_for_backward(rows, scales)
        ctx.weight = weight  # not saved: under ZeRO-3 it is gathered anew for the backward pass
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, scales = ctx.saved_tensors
        grad_y = _rows(grad_outputs[0])
        grad_x = torch.empty_like(rows, memory_format=torch.contiguous_format)
        num_programs = min(len(rows), _num_programs(rows.device))
        partial_sums = rows.new_empty((num_programs, rows.shape[1]), dtype=torch.float32)
        rms_norm_backward(grad_y, rows, ctx.weight, scales, grad_x, partial_sums).run()
        grad_weight = partial_sums.sum(dim=0).to(ctx.weight.dtype)
        return grad_x.view(grad_outputs[0].shape), grad_weight, None


def rms_norm_forward(
    x: Float[Tensor, "T E"],
    weight: Float[Tensor, " E"],
    y: Float[Tensor, "T E"],
    scales: Float[Tensor, " T"],
    eps: float,
) -> Launch:
    """Fill `y`, and `scales` with 1 / rms of every row."""
    block = _power_of_2(x.shape[1])
    arguments = {"x": x, "weight": weight, "y": y, "scales": scales, "x_stride": x.stride(0)}
    arguments |= {"num_columns": x.shape[1], "eps": eps}
    return Launch(_rms_norm_forward, (len(x),), arguments, {"block": block}, _num_warps(block))


def rms_norm_backward(
    grad_y: Float[Tensor, "T E"],
    x: Float[Tensor, "T E"],
    weight: Float[Tensor, " E"],
    scales: Float[Tensor, " T"],
    grad_x: Float[Tensor, "T E"],
    partial_sums: Float[Tensor, "P E"],
) -> Launch:
    """Fill `grad_x`, and `partial_sums` with the weight's gradient over each program's rows."""
    block = _power_of_2(x.shape[1])
    arguments = {"grad_y": grad_y, "x": x, "weight": weight, "scales": scales, "grad_x": grad_x}
    arguments |= {"partial_sums": partial_sums, "num_rows": len(x), "num_columns": x.shape[1]}
    arguments |= {"grad_y_stride": grad_y.stride(0), "x_stride": x.stride(0)}
    grid = (len(partial_sums),)
    return Launch(_rms_norm_backward, grid, arguments, {"block": block}, _num_warps(block))


@triton.jit
def _rms_norm_forward(x, weight, y, scales, x_stride, num_columns, eps, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    is_real = columns < num_columns
    values = tl.load(x + row * x_stride + columns, mask=is_real, other=0.0).to(tl.float32)
    gains = tl.load(weight + columns, mask=is_real, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / num_columns + eps)
    tl.store(scales + row, scale)
    tl.store(y + row * num_columns + columns, values * scale * gains, mask=is_real)


@triton.jit(do_not_specialize=["num_rows"])  # it changes from batch to batch
def _rms_norm_backward(
    grad_y,
    x,
    weight,
    scales,
    grad_x,
    partial_sums,
    num_rows,
    num_columns,
    grad_y_stride,
    x_stride,
    block: tl.constexpr,
):
    program = tl.program_id(0)
    columns = tl.arange(0, block)
    is_real = columns < num_columns
    gains = tl.load(weight + columns, mask=is_real, other=0.0).to(tl.float32)
    total = tl.zeros((block,), dtype=tl.float32)
    for index in range(program, num_rows, tl.num_programs(0)):
        row = tl.cast(index, tl.int64)
        grads = tl.load(grad_y + row * grad_y_stride + columns, mask=is_real, other=0.0)
        values = tl.load(x + row * x_stride + columns, mask=is_real, other=0.0).to(tl.float32)
        grads = grads.to(tl.float32)
        scale = tl.load(scales + row)
        normalised = values * scale
        total += grads * normalised
        grads = grads * gains
        along = tl.sum(grads * normalised, axis=0) / num_columns  # a row's scale does not matter
        grads = (grads - normalised * along) * scale
        tl.store(grad_x + row * num_columns + columns, grads, mask=is_real)
    tl.store(partial_sums + program * num_columns + columns, total, mask=is_real)


# ------------------------------------------------------------------ SwiGLU


def swiglu(gate_up: Float[Tensor, "*rows 2*F"]) -> Float[Tensor, "*rows F"]:
    """silu(gate) · up of the two halves of every row."""
    return _SwiGLU.apply(gate_up)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        y = gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))
        swiglu_forward(gate_up, y).run()
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        grad_gate_up = torch.empty_like(gate_up)
        swiglu_backward(grad_outputs[0].contiguous(), gate_up, grad_gate_up).run()
        return grad_gate_up


def swiglu_forward(gate_up: Float[Tensor, "*rows 2*F"], y: Float[Tensor, "*rows F"]) -> Launch:
    """Fill `y`."""
    arguments = {"gate_up": gate_up, "y": y}
    return _swiglu_launch(_swiglu_forward, arguments, y)


def swiglu_backward(
    grad_y: Float[Tensor, "*rows F"],
    gate_up: Float[Tensor, "*rows 2*F"],
    grad_gate_up: Float[Tensor, "*rows 2*F"],
) -> Launch:
    """Fill `grad_gate_up`."""
    arguments = {"grad_y": grad_y, "gate_up": gate_up, "grad_gate_up": grad_gate_up}
    return _swiglu_launch(_swiglu_backward, arguments, grad_y)


def _swiglu_launch(kernel: Any, arguments: dict[str, Any], y: Tensor) -> Launch:
    width = y.shape[-1]
    block = min(_power_of_2(width), 1024)
    grid = (y.numel() // width, -(-width // block))
    return Launch(kernel, grid, arguments | {"width": width}, {"block": block}, num_warps=4)


@triton.jit
def _swiglu_forward(gate_up, y, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    is_real = columns < width
    gate_up += row * 2 * width + columns
    gate = tl.load(gate_up, mask=is_real, other=0.0).to(tl.float32)
    up = tl.load(gate_up + width, mask=is_real, other=0.0).to(tl.float32)
    tl.store(y + row * width + columns, gate * tl.sigmoid(gate) * up, mask=is_real)


@triton.jit
def _swiglu_backward(grad_y, gate_up, grad_gate_up, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    is_real = columns < width
    place = row * 2 * width + columns
    gate = tl.load(gate_up + place, mask=is_real, other=0.0).to(tl.float32)
    up = tl.load(gate_up + place + width, mask=is_real, other=0.0).to(tl.float32)
    grad = tl.load(grad_y + row * width + columns, mask=is_real, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    grad_gate = grad * up * sigmoid * (1 + gate * (1 - sigmoid))
    tl.store(grad_gate_up + place, grad_gate, mask=is_real)
    tl.store(grad_gate_up + place + width, grad * gate * sigmoid, mask=is_real)


# ------------------------------------------------------------------ rotary positions


def rotate(x: Float[Tensor, "T H D"], rotation: Complex[Tensor, "T C"]) -> Float[Tensor, "T H D"]:
    """Neighbouring dimensions, as complex numbers, times their row's factors."""
    return _Rotate.apply(x, rotation)


class _Rotate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Tensor) -> Tensor:
        ctx.save_for_backward(rotation)
        return _rotated(x, rotation, conjugate=False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (rotation,) = ctx.saved_tensors
        return _rotated(grad_outputs[0], rotation, conjugate=True), None


def _rotated(x: Tensor, rotation: Tensor, conjugate: bool) -> Tensor:
    x = x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    turn(x, torch.view_as_real(rotation), y, conjugate).run()
    return y


def turn(
    x: Float[Tensor, "T H D"],
    rotation: Float[Tensor, "T C 2"],
    y: Float[Tensor, "T H D"],
    conjugate: bool,
) -> Launch:
    """Fill `y` with x turned by `rotation`, backwards with `conjugate`."""
    num_rows, num_heads, head_dim = x.shape
    width = _power_of_2(head_dim)
    heads = min(_power_of_2(num_heads), max(1, _BLOCK // width))
    arguments = {"x": x, "rotation": rotation, "y": y, "x_stride": x.stride(0)}
    arguments |= {"num_heads": num_heads, "head_dim": head_dim}
    constants = {"conjugate": conjugate, "heads_at_a_time": heads, "width": width}
    grid = (num_rows, -(-num_heads // heads))
    return Launch(_rotate, grid, arguments, constants, num_warps=4)


@triton.jit
def _rotate(
    x,
    rotation,
    y,
    x_stride,
    num_heads,
    head_dim,
    conjugate: tl.constexpr,
    heads_at_a_time: tl.constexpr,
    width: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * heads_at_a_time + tl.arange(0, heads_at_a_time)[:, None]
    columns = tl.arange(0, width)
    is_real = (heads < num_heads) & (columns < head_dim)[None, :]
    place = heads * head_dim + columns[None, :]
    factors = tl.load(rotation + row * head_dim + columns, mask=columns < head_dim, other=0.0)
    cos, sin = tl.split(tl.reshape(factors, (1, width // 2, 2)))
    sin = -sin if conjugate else sin
    pairs = tl.load(x + row * x_stride + place, mask=is_real, other=0.0).to(tl.float32)
    real, imaginary = tl.split(tl.reshape(pairs, (heads_at_a_time, width // 2, 2)))
    turned = tl.join(real * cos - imaginary * sin, real * sin + imaginary * cos)
    tl.store(
        y + row * num_heads * head_dim + place,
        tl.reshape(turned, (heads_at_a_time, width)),
        is_real,
    )


def _rows(x: Float[Tensor, "*rows E"]) -> Float[Tensor, "T E"]:
    """As a matrix whose rows may lie apart but are contiguous each."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _power_of_2(length: int) -> int:
    """The smallest power of two that is not below `length`: what a block's length must be."""
    return 1 << (length - 1).bit_length()


def _num_warps(block: int) -> int:
    """A warp for every 512 elements: 16 a thread."""
    return min(max(block // 512, 1), 16)


def _num_programs(device: torch.device) -> int:
    """Programs that loop over the rows: two for each multiprocessor."""
    if device.type != "cuda":  # the interpreter
        return 4
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count
