"""What only a GPU can show: `pytest -m gpu tests/kernels`."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is published for Linux only")

import triton_cases

from kernels import decoding
from kernels.attention import Documents, packed_attention
from kernels.cross_entropy import linear_cross_entropy_sum, linear_logprobs
from kernels.generation import Sampling, generate
from kernels.model import CausalLM, ModelConfig

pytestmark = pytest.mark.gpu

LENGTHS = [1, 127, 40, 300]
LARGEST_ERROR = {"float32": 5e-7, "bfloat16": 4e-3}


def relative_error(actual, exact):
    return ((actual.double() - exact.double()).norm() / exact.double().norm()).item()


def test_triton_kernels_equal_float64_twins():
    found = triton_cases.all_errors("cuda")
    too_large = {
        f"{name}, {tensor}": error
        for name, errors in found.items()
        for tensor, error in errors.items()
        if not error < LARGEST_ERROR[name.split()[-1]]
    }
    assert not too_large


@pytest.mark.parametrize("num_kv_heads", [8, 2])
def test_variable_length_attention_equals_the_padded_one(num_kv_heads):
    documents = Documents.of(LENGTHS, "cuda")
    shapes = [(sum(LENGTHS), heads, 64) for heads in (8, num_kv_heads, num_kv_heads)]
    half = [torch.randn(s, device="cuda").bfloat16().requires_grad_() for s in shapes]
    exact = [x.detach().double().requires_grad_() for x in half]
    rounded_output, output = (packed_attention(*inputs, documents) for inputs in (half, exact))
    grad = torch.randn_like(output)
    rounded_output.backward(grad.bfloat16())
    output.backward(grad)
    assert relative_error(rounded_output, output) < 0.01
    for rounded, reference in zip(half, exact, strict=True):
        assert relative_error(rounded.grad, reference.grad) < 0.01


def test_output_layer_keeps_fp32_sums_of_bf16_products():
    hidden = torch.randn(300, 128, device="cuda").bfloat16().requires_grad_()
    weight = torch.randn(1000, 128, device="cuda").bfloat16().requires_grad_()
    targets = torch.randint(1000, (300,), device="cuda")
    exact = (hidden.double() @ weight.double().T).log_softmax(-1)[range(300), targets]
    scored = linear_logprobs(hidden, weight, targets)
    assert relative_error(scored.logprobs, exact) < 1e-6
    loss = linear_cross_entropy_sum(hidden, weight, targets)
    assert relative_error(loss, -exact.sum()) < 1e-6
    expected = torch.autograd.grad(exact.sum(), (hidden, weight))
    for found in (
        torch.autograd.grad(scored.logprobs.sum(), (hidden, weight)),
        torch.autograd.grad(-loss, (hidden, weight)),
    ):
        assert all(relative_error(a, b) < 0.01 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_recorded_steps_write_what_called_ones_write(num_kv_heads, monkeypatch):
    """Prompts of many lengths, rows that end, widths that change."""
    monkeypatch.setattr(decoding, "_COLUMNS_CUDA", 8)
    config = ModelConfig(50, 32, 2, 4, num_kv_heads, 48, max_seq_len=128)
    model = CausalLM(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.dim() > 1 else 1)
    model.cuda()
    generator = torch.Generator().manual_seed(1)
    lengths = (3, 9, 9, 14, 30) * 8
    prompts = [torch.randint(3, 50, (n,), generator=generator).tolist() for n in lengths]
    recorded = generate(model, prompts, Sampling(60), eos_id=2, seed=0)
    monkeypatch.setattr(decoding, "GraphedDecoder", decoding.Decoder)
    called = generate(model, prompts, Sampling(60), eos_id=2, seed=0)
    assert 0 < sum(called.finished) < len(prompts)
    assert recorded.responses == called.responses
    for found, expected in zip(recorded.logprobs, called.logprobs, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
