"""The Triton kernels without a GPU: interpreted for their values, compiled for two GPUs.

`test_on_gpu.py` runs them where they belong.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is published for Linux only")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from kernels import triton_pointwise  # noqa: E402

PROGRAM = Path(__file__).parent / "triton_cases.py"
LARGEST_ERROR = {"float32": 5e-7, "bfloat16": 5e-3}
"""bf16 has 8 bits, and the interpreter cuts off where a GPU rounds."""

TYPE_NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
SHARED_MEMORY_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""What a block may ask for on A100 and on H100."""


# ---------------------------------------------------------------- values


@pytest.fixture(scope="module")
def interpreted():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kernel", ["rms_norm", "swiglu", "rotate"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_equal_float64_twins(interpreted, kernel, dtype):
    found = {name: e for name, e in interpreted.items() if name.split()[0] == kernel}
    found = {name: e for name, e in found.items() if name.endswith(dtype)}
    assert len(found) >= 3
    too_large = {
        f"{name}, {tensor}": error
        for name, errors in found.items()
        for tensor, error in errors.items()
        if not error < LARGEST_ERROR[dtype]  # NaN is no good either
    }
    assert not too_large


# ---------------------------------------------------------------- compilation


def launches(dtype):
    """Every kernel as Llama 2's 7B and 70B launch it, on tensors without storage."""

    def tensor(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    rows, num_programs = 4096, 216
    scales = tensor(rows, dtype=torch.float32)
    for dim in (4096, 8192):
        x, weight = tensor(rows, dim), tensor(dim)
        partial_sums = tensor(num_programs, dim, dtype=torch.float32)
        yield triton_pointwise.rms_norm_forward(x, weight, x, scales, 1e-5)
        yield triton_pointwise.rms_norm_backward(x, x, weight, scales, x, partial_sums)
    gate_up, y = tensor(rows, 2 * 11_008), tensor(rows, 11_008)
    yield triton_pointwise.swiglu_forward(gate_up, y)
    yield triton_pointwise.swiglu_backward(y, gate_up, gate_up)
    rotation = tensor(rows, 64, 2, dtype=torch.float32)
    for conjugate in (False, True):
        heads = tensor(rows, 96, 128)[:, :64]
        yield triton_pointwise.turn(heads, rotation, heads, conjugate)


def all_kernels():
    members = vars(triton_pointwise).items()
    return {name for name, member in members if isinstance(member, triton.JITFunction)}


def compile_for(launch, architecture):
    """The launch's kernel for its arguments' types, as Triton would compile it on that GPU."""
    signature = {
        name: "constexpr" if name in launch.constants else type_name(launch.arguments[name])
        for name in launch.kernel.arg_names
    }
    return triton.compile(
        ASTSource(launch.kernel, signature, launch.constants),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": launch.num_warps},
    )


def type_name(value):
    if isinstance(value, torch.Tensor):
        return TYPE_NAMES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


@pytest.mark.parametrize("architecture", SHARED_MEMORY_BYTES)
@pytest.mark.parametrize("dtype", TYPE_NAMES, ids=str)
def test_compiles_for_a_gpu_that_is_not_here(architecture, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # compiled, not remembered
    compiled = [compile_for(launch, architecture) for launch in launches(dtype)]
    assert {kernel.metadata.name for kernel in compiled} == all_kernels()
    for kernel in compiled:
        print(f"sm_{architecture} {kernel.metadata.name}: {kernel.metadata.shared} bytes shared")
        assert f".target sm_{architecture}" in kernel.asm["ptx"]
        assert len(kernel.asm["cubin"]) > 0
        assert kernel.metadata.shared <= SHARED_MEMORY_BYTES[architecture]


# ---------------------------------------------------------------- where it is used


def test_cpu_imports_no_triton_and_needs_none():
    """None in sys.modules makes an import fail, as on a machine without Triton."""
    program = """
import sys
sys.modules["triton"] = None
import torch
from kernels.attention import Documents
from kernels.generation import Sampling, generate
from kernels.model import CausalLM, ModelConfig
model = CausalLM(ModelConfig(50, 32, 1, 2, 2, 48), torch.Generator().manual_seed(0))
loss = model(torch.tensor([3, 4]), Documents.of([2]), torch.tensor([0]), torch.tensor([4]))
loss.backward()
print(len(generate(model, [[3, 4]], Sampling(2), eos_id=1, seed=0).responses))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
