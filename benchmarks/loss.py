"""What does an output layer cost, in time and memory, without its matrix of logits?

    python -m benchmarks.loss

One lap is the loss of so many rows, forward and backward. Twice: the mean that pretraining and SFT
minimise, and every token's log-probability and entropy, which PPO needs. MiB is the most that a
lap held beyond its inputs, gradients included.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.benchmark import Benchmark, main
from benchmarks.memory import peak_mib
from benchmarks.shapes import Floor
from benchmarks.sides import Side
from benchmarks.stage_work import seed_everything
from benchmarks.turns import Turns
from kernels.cross_entropy import linear_cross_entropy_sum, linear_logprobs


@dataclass(frozen=True)
class Size:
    """Rows with a loss, model dimension, vocabulary."""

    num_rows: int = 4096
    dim: int = 512
    vocab_size: int = 32_000


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _laps(turns: Turns, size: Size, loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(size.num_rows, size.dim, generator=generator).requires_grad_()
    weight = torch.randn(size.vocab_size, size.dim, generator=generator).mul_(0.02).requires_grad_()
    targets = torch.randint(size.vocab_size, (size.num_rows,), generator=generator)
    turns.start()
    for _ in range(turns.num_laps):
        hidden.grad = weight.grad = None
        with peak_mib() as peak:
            value = loss(hidden, weight, targets)
            value.backward()
        turns.lap(size.num_rows, loss=value.item(), **peak)


def our_mean(turns: Turns, size: Size) -> None:
    """Pretraining's and SFT's loss."""
    seed_everything(0)
    _laps(turns, size, lambda h, w, t: linear_cross_entropy_sum(h, w, t) / len(t))


def plain_mean(turns: Turns, size: Size) -> None:
    """All logits at once."""
    _laps(turns, size, lambda h, w, t: F.cross_entropy((h @ w.T).float(), t))


def torch_mean(turns: Turns, size: Size) -> None:
    """PyTorch's own chunked loss."""
    _laps(turns, size, F.linear_cross_entropy)


def our_logprobs(turns: Turns, size: Size) -> None:
    """PPO's log-probabilities."""
    seed_everything(0)

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        out = linear_logprobs(hidden, weight, targets)
        return -out.logprobs.mean() - 0.01 * out.entropy.mean()

    _laps(turns, size, loss)


def plain_logprobs(turns: Turns, size: Size) -> None:
    """All logits at once."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logprobs = (hidden @ weight.T).float().log_softmax(dim=-1)
        entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
        return -logprobs.gather(1, targets[:, None]).mean() - 0.01 * entropy.mean()

    _laps(turns, size, loss)


def floor(size: Size) -> Floor:
    """Three products of rows, dimension and vocabulary."""
    return Floor(6.0 * size.dim * size.vocab_size, "logits and the two gradients")


def recompute_floor(size: Size) -> Floor:
    """Four: the logits are made again for the backward pass."""
    return Floor(8.0 * size.dim * size.vocab_size, "logits twice and the two gradients")


MEAN = Benchmark(
    name="loss-mean",
    question=__doc__.splitlines()[0],
    unit="rows/s",
    size=Size(),
    laps_per_round=2,
    sides=(
        Side("ours", our_mean, "kernels.cross_entropy.linear_cross_entropy_sum"),
        Side("plain", plain_mean, "F.cross_entropy(logits.float())", target=1.0),
        Side("torch, chunked", torch_mean, "F.linear_cross_entropy, default options"),
    ),
    floor=floor,
)

LOGPROBS = dataclasses.replace(
    MEAN,
    name="loss-logprobs",
    sides=(
        Side("ours", our_logprobs, "kernels.cross_entropy.linear_logprobs"),
        Side("plain", plain_logprobs, "log_softmax of all logits, gather, entropy", target=1.0),
    ),
    floor=recompute_floor,
)

BENCHMARKS = (MEAN, LOGPROBS)

if __name__ == "__main__":
    main(*BENCHMARKS)
