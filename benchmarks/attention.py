"""What does attention inside packed documents cost, against one dense mask?

    python -m benchmarks.attention

One lap is a forward and a backward pass over a flat sequence of documents.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.benchmark import Benchmark, main
from benchmarks.shapes import Floor
from benchmarks.sides import Side
from benchmarks.stage_work import seed_everything
from benchmarks.turns import Turns
from kernels.attention import Documents, packed_attention


@dataclass(frozen=True)
class Size:
    """A packed sequence and its heads."""

    lengths: tuple[int, ...] = (64, 512, 128, 448, 192, 384, 256, 64)
    n_heads: int = 8
    head_dim: int = 64


Attend = Callable[[Tensor, Tensor, Tensor, Documents], Tensor]


def _laps(turns: Turns, size: Size, attend: Attend) -> None:
    documents = Documents.of(size.lengths)
    num_tokens = sum(size.lengths)
    generator = torch.Generator().manual_seed(0)
    shape = (num_tokens, size.n_heads, size.head_dim)
    q, k, v = (torch.randn(shape, generator=generator).requires_grad_() for _ in range(3))
    grad = torch.randn(shape, generator=generator)
    turns.start()
    for _ in range(turns.num_laps):
        q.grad = k.grad = v.grad = None
        attend(q, k, v, documents).backward(grad)
        turns.lap(num_tokens)


def ours(turns: Turns, size: Size) -> None:
    """As every layer of every stage attends."""
    seed_everything(0)
    _laps(turns, size, packed_attention)


def dense_mask(turns: Turns, size: Size) -> None:
    """What transformers makes of packed position ids."""
    document = torch.repeat_interleave(torch.arange(len(size.lengths)), torch.tensor(size.lengths))
    mask = (document[:, None] == document[None, :]).tril()
    _laps(turns, size, lambda q, k, v, _: _sdpa(q, k, v, attn_mask=mask))


def one_causal(turns: Turns, size: Size) -> None:
    """Wrong, since documents see each other; here for the price of doing it right."""
    _laps(turns, size, lambda q, k, v, _: _sdpa(q, k, v, is_causal=True))


def _sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Tensor | bool) -> Tensor:
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first, **options)[0].transpose(0, 1)


def floor(size: Size) -> Floor:
    """Two products forward and four backward, over the half of each document's square."""
    cells = sum(n * (n + 1) / 2 for n in size.lengths)
    flops = 6 * 2 * cells * size.n_heads * size.head_dim / sum(size.lengths)
    return Floor(flops, "six products over each document's triangle")


BENCHMARK = Benchmark(
    name="attention",
    question=__doc__.splitlines()[0],
    unit="tokens/s",
    size=Size(),
    laps_per_round=10,
    sides=(
        Side("ours", ours, "kernels.attention.packed_attention"),
        Side("dense mask", dense_mask, "SDPA with a boolean mask of 2048²", target=3.0),
        Side("one document", one_causal, "SDPA, causal, documents ignored: another result"),
    ),
    floor=floor,
)

if __name__ == "__main__":
    main(BENCHMARK)
