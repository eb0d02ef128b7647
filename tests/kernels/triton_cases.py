"""How far the Triton kernels are from their float64 twins, on a GPU or in Triton's interpreter.

For the interpreter this is a program, since TRITON_INTERPRET must be set before Triton is imported:

    TRITON_INTERPRET=1 python tests/kernels/triton_cases.py

prints {case: {tensor: relative error}} as JSON. The interpreter is slow: small shapes only.
"""

import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kernels import pointwise, rope, triton_pointwise

EPS = 1e-5
NORM_SHAPES = [(1, 3), (1, 37), (9, 96), (7, 256)]  # 9 rows for 4 programs, and widths no 2^n
SWIGLU_SHAPES = [(1, 1), (3, 37), (2, 1500)]  # 1500 columns are two blocks
ROTATE_SHAPES = [(1, 1, 2), (3, 5, 6), (2, 40, 80), (2, 33, 128)]  # the last: two blocks of heads
DTYPES = [torch.float32, torch.bfloat16]


def all_errors(device: str) -> dict[str, dict[str, float]]:
    """Of every case: of the output, and of the gradient of every input."""
    torch.manual_seed(0)
    with torch.device(device):
        return dict(cases())


def cases() -> Iterator[tuple[str, dict[str, float]]]:
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        for shape in NORM_SHAPES:
            yield f"rms_norm {shape} {name}", norm_errors(*shape, dtype)
        for shape in SWIGLU_SHAPES:
            yield f"swiglu {shape} {name}", swiglu_errors(*shape, dtype)
        for shape in ROTATE_SHAPES:
            yield f"rotate {shape} {name}", rotate_errors(*shape, dtype)


def norm_errors(rows: int, width: int, dtype: torch.dtype) -> dict[str, float]:
    x = between_others(torch.randn(rows, width), dtype)
    weight = torch.randn(width).to(dtype)
    return errors(
        lambda x, weight: triton_pointwise.rms_norm(x, weight, EPS),
        lambda x, weight: pointwise.rms_norm(x, weight, EPS),
        x=x,
        weight=weight,
    )


def swiglu_errors(rows: int, width: int, dtype: torch.dtype) -> dict[str, float]:
    gate_up = between_others(torch.randn(rows, 2 * width), dtype)
    return errors(triton_pointwise.swiglu, pointwise.swiglu, gate_up=gate_up)


def rotate_errors(rows: int, heads: int, head_dim: int, dtype: torch.dtype) -> dict[str, float]:
    qkv = torch.randn(rows, heads + 3, head_dim).to(dtype)  # as in the model: keys, then values
    rotation = rope.rotation_table(50, head_dim, 100.0, qkv.device)[torch.randint(50, (rows,))]
    return errors(
        lambda x: triton_pointwise.rotate(x, rotation),
        lambda x: rope.rotate(x, rotation),
        x=qkv[:, :heads],
    )


def between_others(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As columns of a wider matrix of NaN: a read past a row's end shows."""
    wide = torch.full((x.shape[0], x.shape[1] + 5), torch.nan)
    wide[:, 2:-3] = x
    return wide.to(dtype)[:, 2:-3]


def errors(
    kernel: Callable[..., Tensor], twin: Callable[..., Tensor], **inputs: Tensor
) -> dict[str, float]:
    """Relative error of the output and of every input's gradient."""
    exact_inputs = {name: x.double().requires_grad_() for name, x in inputs.items()}
    expected = twin(**exact_inputs)
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    output = kernel(*leaves.values())
    grad = torch.randn(expected.shape).to(output.dtype)
    expected.backward(grad.double())
    output.backward(grad)
    found = {"output": relative_error(output, expected)}
    for name, leaf in leaves.items():
        found[name] = relative_error(gradient(leaf), gradient(exact_inputs[name]))
    return found


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def relative_error(actual: Tensor, exact: Tensor) -> float:
    assert actual.shape == exact.shape
    return ((actual.double() - exact).norm() / exact.norm()).item()


if __name__ == "__main__":
    print(json.dumps(all_errors("cpu")))
