"""Cross-entropy and log-probabilities of an output layer without its [R, V] matrix.

Legend: R loss rows, D model dim, V vocabulary. Rows are taken a chunk at a time, so that of the
logits only [chunk, V] ever exists. Two uses, two autograd functions:

- training (pretraining, SFT) wants one number: `linear_cross_entropy_sum` makes the gradients
  while the logits are at hand, and the backward pass only scales them;
- PPO's update wants every token's log-probability: `linear_logprobs` keeps one number a row and
  computes the logits again in the backward pass. `measured_logprobs` is the same without gradients
  and entropy, for the passes that only measure.

Everything after the matrix product is at least fp32 whatever the inputs are: in bf16 a
log-probability is off by 0.03 to 0.05, which a PPO ratio does not survive.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.products import add_weight_gradient_, product

_CHUNK_ELEMENTS_CPU = 2**22
"""Logits at a time (16 MiB in fp32), so that they stay in the processor's cache: at V = 4,096, with
twice as many, log-probabilities take 1.6 times as long."""
_CHUNK_ROWS_CPU = 256
"""But no fewer rows: the weight gradient is read and written once a chunk. At V = 32,000 and
D = 512 a loss takes 1.3 times as long with half as many, and is not much faster with twice."""
CHUNK_ELEMENTS_CUDA = 2**26
"""256 MiB: about 2,000 rows at V = 32,000, so that arithmetic outweighs that read and write."""


class TokenLogprobs(NamedTuple):
    """Per row: the target's log-probability and the entropy of the whole distribution, in nats.

    A tuple and not a dataclass: DeepSpeed's ZeRO-3 finds tensors in tuples only, and gathers the
    output layer for the backward pass by what it finds.
    """

    logprobs: Float[Tensor, " R"]
    entropy: Float[Tensor, " R"]


def linear_cross_entropy_sum(
    hidden: Float[Tensor, "R D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, " R"]
) -> Float[Tensor, ""]:
    """Sum over rows of the cross-entropy of `hidden @ weight.T` against `targets`, in nats.

    The sum and not the mean: a caller divides by the rows of its global batch, which no single
    micro-batch knows. At least fp32; the weight's gradient is accumulated in fp32. No rows give
    0 with zero gradients, so a rank without loss rows still takes part in the backward pass.

    The gradients are made in the forward pass and scaled in place in the backward pass: a second
    backward pass through the same result raises RuntimeError.
    """
    wants_hidden = torch.is_grad_enabled() and hidden.requires_grad
    wants_weight = torch.is_grad_enabled() and weight.requires_grad
    return _CrossEntropySum.apply(hidden, weight, targets, wants_hidden, wants_weight)


def linear_logprobs(
    hidden: Float[Tensor, "R D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " R"],
    temperature: float = 1.0,
) -> TokenLogprobs:
    """Log-probability of each target and entropy under softmax(hidden @ weight.T / temperature).

    `temperature` must be the one that the tokens were sampled with, or the PPO ratio is not 1 at
    the first step. Both results are at least fp32 and differentiable.
    Raises ValueError unless temperature > 0.
    """
    _check_temperature(temperature)
    return TokenLogprobs(*_TokenLogprobs.apply(hidden, weight, targets, temperature))


@torch.no_grad()
def measured_logprobs(
    hidden: Float[Tensor, "R D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, " R"],
    temperature: float = 1.0,
) -> Float[Tensor, " R"]:
    """The log-probabilities of `linear_logprobs`, to the bit, without gradients and entropy.

    On CPU it takes three quarters of the time: after the matrix product the logits are read or
    written six times and not ten. Raises ValueError unless temperature > 0.
    """
    _check_temperature(temperature)
    logprobs = hidden.new_empty(hidden.shape[0], dtype=_working_dtype(hidden))
    buffer = _buffer(hidden, weight)
    for rows in _chunks(hidden, weight):
        logits = _logits(hidden[rows], weight, buffer, temperature)
        logits.sub_(logits.amax(dim=1, keepdim=True))
        chosen = logits.gather(1, targets[rows, None])
        logprobs[rows] = chosen.sub_(logits.exp_().sum(dim=1, keepdim=True).log()).squeeze(1)
    return logprobs


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(
            f"temperature is {temperature}, and log-probabilities need one above 0. "
            "Pass the sampling temperature, or 1.0 to score tokens that were chosen greedily."
        )


class _CrossEntropySum(torch.autograd.Function):
    """Sum of cross-entropies; the forward pass makes the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        wants_hidden: bool,
        wants_weight: bool,
    ) -> Tensor:
        dtype = _working_dtype(hidden)
        losses = hidden.new_empty(hidden.shape[0], dtype=dtype)
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if wants_weight else None
        buffer = _buffer(hidden, weight)
        for rows in _chunks(hidden, weight):
            logits = _logits(hidden[rows], weight, buffer)
            chosen = targets[rows, None]
            target_logits = logits.gather(1, chosen).squeeze(1)
            log_normaliser = _softmax_(logits)  # logits now hold the probabilities
            losses[rows] = log_normaliser - target_logits
            logits.scatter_add_(1, chosen, logits.new_full(chosen.shape, -1.0))
            if grad_hidden is not None:
                product(logits.to(hidden.dtype), weight, out=grad_hidden[rows])
            if grad_weight is not None:
                _add_weight_gradient_(grad_weight, logits, hidden[rows])
        ctx.grads = grad_hidden, grad_weight
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_output,) = grad_outputs
        if ctx.grads is None:
            raise RuntimeError(
                "linear_cross_entropy_sum makes its gradients once, and a backward pass has taken "
                "them. Call it again for another backward pass."
            )
        # Scaled in place and given away, not copied: [V, D] in fp32 is half a gigabyte at 7B, at
        # the moment of peak memory.
        grads, ctx.grads = ctx.grads, None
        return *(grad if grad is None else grad.mul_(grad_output) for grad in grads), *[None] * 3


class _TokenLogprobs(torch.autograd.Function):
    """Log-probability and entropy per row; the backward pass computes the logits again.

    Not those of the last chunk, whose buffer is kept: a batch of one chunk makes its logits once.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logprobs = hidden.new_empty(hidden.shape[0], dtype=_working_dtype(hidden))
        entropy, log_normalisers = torch.empty_like(logprobs), torch.empty_like(logprobs)
        buffer, scratch = _buffer(hidden, weight), _buffer(hidden, weight)
        for rows in _chunks(hidden, weight):
            logits = _logits(hidden[rows], weight, buffer, temperature)
            largest = logits.amax(dim=1, keepdim=True)
            unnormalised = torch.exp(logits.sub_(largest), out=scratch[: len(logits)])
            total = unnormalised.sum(dim=1, keepdim=True)
            log_total = total.log()
            mean = torch.linalg.vecdot(unnormalised, logits).unsqueeze(1) / total
            entropy[rows] = (log_total - mean).squeeze(1)
            log_normalisers[rows] = (log_total + largest).squeeze(1)
            logprobs[rows] = logits.sub_(log_total).gather(1, targets[rows, None]).squeeze(1)
        ctx.save_for_backward(hidden, targets, log_normalisers, entropy)
        # The parameter itself, not a saved tensor: under ZeRO-3 its storage is released after
        # the forward pass and gathered anew, at another address, for the backward pass.
        ctx.weight = weight
        ctx.temperature = temperature
        ctx.last_logprobs = buffer
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, targets, log_normalisers, entropy = ctx.saved_tensors
        weight: Tensor = ctx.weight
        wants_hidden, wants_weight, *_ = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=entropy.dtype) if wants_weight else None
        # Taken, so that a second backward pass makes these logits too.
        kept, ctx.last_logprobs = ctx.last_logprobs, None
        buffer, scratch = _buffer(hidden, weight) if kept is None else kept, _buffer(hidden, weight)
        for rows in reversed(_chunks(hidden, weight)):
            if kept is None:
                logits = _logits(hidden[rows], weight, buffer, ctx.temperature)
                logprobs = logits.sub_(log_normalisers[rows, None])
            else:
                logprobs, kept = kept[: rows.stop - rows.start], None
            grad_logits = _grad_logits_(
                logprobs,
                torch.exp(logprobs, out=scratch[: len(logprobs)]),
                targets[rows, None],
                entropy[rows, None],
                *(None if grad is None else grad[rows, None] for grad in grad_outputs),
            )
            if ctx.temperature != 1:
                grad_logits.div_(ctx.temperature)
            if grad_hidden is not None:
                product(grad_logits.to(hidden.dtype), weight, out=grad_hidden[rows])
            if grad_weight is not None:
                _add_weight_gradient_(grad_weight, grad_logits, hidden[rows])
        return grad_hidden, grad_weight, None, None


def _grad_logits_(
    logprobs: Tensor,
    probabilities: Tensor,
    targets: Tensor,
    entropy: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
) -> Tensor:
    """Gradient of the (tempered) logits [chunk, V] from the gradients of a chunk's two results.

    With p the probabilities and H the entropy: ∂ log p_t / ∂z = onehot(t) - p, and
    ∂H / ∂z = -p (log p + H). Written over `probabilities`; `logprobs` are lost.
    """
    if grad_logprobs is None:
        grad_logprobs = torch.zeros_like(entropy)
    factor = -grad_logprobs
    if grad_entropy is not None:
        factor = logprobs.add_(entropy).mul_(-grad_entropy).add_(factor)
    return probabilities.mul_(factor).scatter_add_(1, targets, grad_logprobs)


def _softmax_(logits: Tensor) -> Tensor:
    """Turn logits [chunk, V] into probabilities in place; gives the log-normaliser of each row.

    In steps: the built-in softmax is 2.5 times as fast on CPU (2 % of the whole loss) and 20 times
    as far from float64.
    """
    largest = logits.amax(dim=1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
    logits.div_(total)
    return (total.log() + largest).squeeze(1)


def _working_dtype(tensor: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64 inputs (gradient checks)."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """The rows, as many at a time as fit this device's chunk."""
    num_rows, size = hidden.shape[0], _rows_at_a_time(hidden, weight)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _buffer(hidden: Tensor, weight: Tensor) -> Tensor:
    """Room for the logits of a chunk, in the working dtype.

    The same for every chunk: allocated anew each time, they leave the C library's heap in pieces,
    and the peak was up to three times as high on CPU. (oneDNN's product of a chunk is allocated
    beside it and copied: a twentieth of the product's time.)
    """
    num_rows = min(_rows_at_a_time(hidden, weight), hidden.shape[0])
    return hidden.new_empty(num_rows, weight.shape[0], dtype=_working_dtype(hidden))


def _rows_at_a_time(hidden: Tensor, weight: Tensor) -> int:
    if hidden.is_cuda:
        return max(1, CHUNK_ELEMENTS_CUDA // weight.shape[0])
    return max(_CHUNK_ROWS_CPU, _CHUNK_ELEMENTS_CPU // weight.shape[0])


def _logits(hidden: Tensor, weight: Tensor, buffer: Tensor, temperature: float = 1.0) -> Tensor:
    """`hidden @ weight.T / temperature`, in the buffer."""
    out = buffer[: len(hidden)]
    if hidden.dtype == out.dtype:
        product(hidden, weight.T, out=out)
    elif hidden.is_cuda:  # keeps the sums in fp32, where the CPU rounds them to bf16
        torch.mm(hidden, weight.T, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(hidden, weight.T))
    return out if temperature == 1 else out.div_(temperature)


def _add_weight_gradient_(total: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """`total += grad_logits.T @ hidden`, every partial sum in the total's dtype.

    Rounding each chunk's product to bf16 would add its error once a chunk, and the result would
    be worse than that of the one big product.
    """
    if hidden.is_cuda and hidden.dtype != total.dtype:
        total.add_(torch.mm(grad_logits.to(hidden.dtype).T, hidden, out_dtype=total.dtype))
    else:
        add_weight_gradient_(total, grad_logits, hidden.to(total.dtype))
