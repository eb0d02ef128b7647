"""Every kernel in bf16 against float64 on the same GPU, beside the plain bf16 way to compute it.

Legend: T tokens, E model dimension, V vocabulary, H heads, KV key-value heads, D head dimension.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention import Documents, packed_attention
from kernels.cross_entropy import linear_cross_entropy_sum, linear_logprobs
from kernels.generation import Sampling, generate
from kernels.model import CausalLM, ModelConfig
from kernels.pointwise import rms_norm, swiglu
from kernels.rope import rotate, rotation_table

DOCUMENTS = (1, 127, 128, 300, 17)
"""Lengths on both sides of the attention kernels' blocks."""

_NO_WORSE = 1.5
"""Times the plain error: the same roundings in another order."""

_ALWAYS_FINE = 1e-5
"""Relative error that needs no comparison."""


@dataclass(frozen=True)
class Check:
    """Distance from float64 relative to its size, of a kernel and of the plain bf16 computation."""

    what: str
    error: float
    plain_error: float
    holds: bool


def run(device: torch.device, model: ModelConfig) -> list[Check]:
    """All checks, with the widths of this model."""
    torch.manual_seed(0)
    with torch.device(device):
        kernels = [
            *_pointwise(model),
            *_attention(model, model.n_heads),
            *_attention(model, max(1, model.n_heads // 4)),
            *_output_layer(model),
        ]
    return [*kernels, _decoding(device)]


def _pointwise(model: ModelConfig) -> Iterator[Check]:
    num_tokens, shape = sum(DOCUMENTS), (model.dim,)
    x, weight = _normal(num_tokens, model.dim), _normal(model.dim)
    yield from _compare(
        "RMSNorm",
        lambda x, weight: rms_norm(x, weight, model.norm_eps),
        lambda x, weight: F.rms_norm(x, shape, weight, model.norm_eps),
        {"x": x, "weight": weight},
    )
    gate_up = {"gate_up": _normal(num_tokens, 2 * model.ffn_hidden)}
    yield from _compare("SwiGLU", swiglu, _plain_swiglu, gate_up)
    positions = Documents.of(DOCUMENTS, torch.get_default_device()).positions
    table = rotation_table(max(DOCUMENTS), model.head_dim, model.rope_theta, positions.device)
    heads = {"x": _normal(num_tokens, 2 * model.n_heads, model.head_dim)[:, : model.n_heads]}
    yield from _compare(
        "rotary positions",
        lambda x: rotate(x, table[positions]),
        lambda x: _plain_rotate(x, table[positions]),
        heads,
    )


def _attention(model: ModelConfig, num_kv_heads: int) -> Iterator[Check]:
    documents = Documents.of(DOCUMENTS, torch.get_default_device())
    num_tokens = sum(DOCUMENTS)
    keys_and_values = (_normal(num_tokens, num_kv_heads, model.head_dim) for _ in range(2))
    inputs = dict(zip(("k", "v"), keys_and_values, strict=True))
    yield from _compare(
        f"attention {model.n_heads}:{num_kv_heads}",
        lambda q, k, v: packed_attention(q, k, v, documents),
        lambda q, k, v: _eager_attention(q, k, v, documents),
        {"q": _normal(num_tokens, model.n_heads, model.head_dim)} | inputs,
    )


def _output_layer(model: ModelConfig) -> Iterator[Check]:
    num_rows = sum(DOCUMENTS)
    targets = torch.randint(model.vocab_size, (num_rows,))
    inputs = {"hidden": _normal(num_rows, model.dim)}
    inputs |= {"weight": _normal(model.vocab_size, model.dim) * model.dim**-0.5}
    yield from _compare(
        "cross-entropy",
        lambda hidden, weight: linear_cross_entropy_sum(hidden, weight, targets),
        lambda hidden, weight: -_plain_logprobs(hidden, weight, targets).sum(),
        inputs,
    )
    yield from _compare(
        "log-probabilities",
        lambda hidden, weight: linear_logprobs(hidden, weight, targets).logprobs,
        lambda hidden, weight: _plain_logprobs(hidden, weight, targets),
        inputs,
    )


def _decoding(device: torch.device) -> Check:
    """Log-probabilities of sampled tokens against the trainer's own; both in fp32."""
    config = ModelConfig(512, 256, 2, 8, 2, 512, max_seq_len=512)
    model = CausalLM(config, None).to(device)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05 if weight.dim() > 1 else 1.0)
    prompts = [torch.randint(3, 512, (n,)).tolist() for n in (5, 60, 60, 200)]
    out = generate(model, prompts, Sampling(100), eos_id=2, seed=0)
    sampled = torch.tensor([x for logprobs in out.logprobs for x in logprobs])
    exact = _response_logprobs(model.double(), prompts, out.responses)
    error = _relative_error(sampled, exact)
    return Check("decoding in fp32, log-probabilities", error, 0.0, error < 1e-4)


@torch.no_grad()
def _response_logprobs(
    model: CausalLM, prompts: list[list[int]], responses: list[list[int]]
) -> Tensor:
    """The trainer's own, of all responses one after another."""
    device = model.lm_head.weight.device
    sequences = [p + r for p, r in zip(prompts, responses, strict=True)]
    documents = Documents.of([len(s) for s in sequences], device)
    tokens = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    is_response = torch.tensor(
        [i >= len(p) for p, s in zip(prompts, sequences, strict=True) for i in range(len(s))],
        device=device,
    )
    targets = is_response.nonzero().squeeze(1)
    return model(tokens, documents, targets - 1, tokens[targets], mode="logprobs").logprobs.cpu()


def _compare(
    what: str,
    kernel: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    inputs: dict[str, Tensor],
) -> Iterator[Check]:
    """The output's error, and the error of every input's gradient."""
    exact_inputs = [x.double() for x in inputs.values()]
    grad = torch.randn_like(plain(*exact_inputs))
    exact = _outputs(plain, exact_inputs, grad)
    ours = _outputs(kernel, list(inputs.values()), grad)
    plain_ones = _outputs(plain, list(inputs.values()), grad)
    names = ["", *(f", gradient of {name}" for name in inputs)]
    for name, a, b, c in zip(names, ours, plain_ones, exact, strict=True):
        error, plain_error = _relative_error(a, c), _relative_error(b, c)
        holds = error <= max(_NO_WORSE * plain_error, _ALWAYS_FINE)
        yield Check(f"{what}{name}", error, plain_error, holds)


def _outputs(
    function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor
) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    return output, *torch.autograd.grad(output, leaves, grad.to(output.dtype))


def _relative_error(actual: Tensor, exact: Tensor) -> float:
    return ((actual.double() - exact.double()).norm() / exact.double().norm()).item()


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def _plain_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _plain_rotate(x: Tensor, rotation: Tensor) -> Tensor:
    real, imaginary = x[..., ::2], x[..., 1::2]
    cos, sin = rotation.real[:, None].to(x.dtype), rotation.imag[:, None].to(x.dtype)
    turned = real * cos - imaginary * sin, real * sin + imaginary * cos
    return torch.stack(turned, dim=-1).flatten(-2)


def _eager_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """With a dense mask over all tokens; [T, H, D]."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    number = torch.repeat_interleave(documents.cu_seqlens.diff())
    is_seen = (number[:, None] == number).tril()
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~is_seen, -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def _plain_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """From logits rounded to the inputs' dtype and then widened."""
    logits = hidden @ weight.T
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1)
