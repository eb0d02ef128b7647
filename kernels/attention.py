"""Causal self-attention over documents laid end to end, with nothing leaking between them.

On CUDA in half precision this is PyTorch's own variable-length kernel, for the head dimensions that
it takes. Elsewhere documents of like length are right-padded into one causal call, of
`causal_blocks` on the CPU and of `scaled_dot_product_attention` else: a causal row never sees what
stands to its right, so the padding needs no mask (a dense mask costs 5 times as much at eight
documents).

Legend: T tokens, N documents, H heads, KV key-value heads, D head dimension, S padded rows.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from kernels.causal_blocks import blocked_attention, worth_blocks
from kernels.rope import positions_within

_STEP = 16
"""Documents whose lengths round up to the same multiple of this share a bucket. The CPU kernel
works in steps of 16, so this padding is nearly free. Forward and backward at 256 documents of 20-48
tokens: 24 ms against 52 ms for a loop over documents; at 8 documents of 64-512 tokens: no
difference."""


_LARGEST_HEAD = 256
"""Dimensions of a head; the variable-length kernel takes multiples of 8 up to it."""


@dataclass(frozen=True)
class Buckets:
    """How documents are laid out in padded rows for one causal attention call per bucket."""

    shapes: tuple[tuple[int, int], ...]
    """(documents, padded length) of every bucket, in the order of their rows."""
    source: Int[Tensor, " S"]
    """The token that fills each padded row; padding repeats its own document's last token."""
    target: Int[Tensor, " T"]
    """The padded row that holds each token."""
    in_place: bool
    """Whether the rows are the tokens, in order and without padding, so nothing need be moved."""


@dataclass(frozen=True, eq=False)
class Documents:
    """Where each document lies in a flat batch of tokens. Build with `Documents.of`."""

    lengths: tuple[int, ...]
    """Tokens of each document, each at least 1."""
    cu_seqlens: Int[Tensor, " bounds"]
    """Start of each document and the end of the last one, int32."""
    max_length: int
    positions: Int[Tensor, " T"]
    """Position of every token within its document."""
    last: Int[Tensor, " N"]
    """Index of each document's last token."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "Documents":
        """Describe documents of these lengths, laid end to end in this order.

        Raises ValueError for no document or an empty one.
        """
        if not lengths or min(lengths) < 1:
            raise ValueError(
                "A batch needs at least one document and every document at least one token. "
                "Drop empty documents before packing."
            )
        sizes = torch.tensor(lengths, dtype=torch.int64)
        ends = sizes.cumsum(0)
        return cls(
            lengths=tuple(lengths),
            cu_seqlens=F.pad(ends, (1, 0)).to(device, torch.int32),
            max_length=max(lengths),
            positions=positions_within(sizes).to(device),
            last=(ends - 1).to(device),
        )

    @cached_property
    def buckets(self) -> Buckets:
        """The padded layout, worked out once for all layers."""
        return _lay_out(self.lengths, self.positions.device)


def packed_attention(
    q: Float[Tensor, "T H D"],
    k: Float[Tensor, "T KV D"],
    v: Float[Tensor, "T KV D"],
    documents: Documents,
) -> Float[Tensor, "T H D"]:
    """Causal attention of every token to its own document's tokens, scaled by 1/sqrt(D).

    With fewer key-value heads than heads (KV divides H), H/KV neighbouring heads share one.
    """
    is_half = q.dtype in (torch.float16, torch.bfloat16)
    if q.is_cuda and is_half and q.shape[-1] % 8 == 0 and q.shape[-1] <= _LARGEST_HEAD:
        return _variable_length_attention(q, k, v, documents)
    return _bucketed_attention(q, k, v, documents.buckets)


def _variable_length_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    kernel, has_gqa = _varlen_kernel()
    groups = q.shape[1] // k.shape[1]
    options: dict[str, Any] = {"window_size": (-1, 0)}  # everything to the left, nothing beyond
    if groups > 1 and has_gqa:
        options["enable_gqa"] = True
    elif groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    bounds, longest = documents.cu_seqlens, documents.max_length
    return kernel(q, k, v, bounds, bounds, longest, longest, **options)


@cache
def _varlen_kernel() -> tuple[Callable[..., Any], bool]:
    """PyTorch's kernel, and whether it lets heads share key-value heads (PyTorch 2.11's does not).

    Imported where it can run: it brings the compiler along, which is a second of every start.
    """
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters


def _bucketed_attention(q: Tensor, k: Tensor, v: Tensor, buckets: Buckets) -> Tensor:
    rows = [_pad(x, buckets) for x in (q, k, v)]
    sizes = [documents * length for documents, length in buckets.shapes]
    outputs = []
    for shape, *parts in zip(buckets.shapes, *(x.split(sizes) for x in rows), strict=True):
        output = _causal(*(x.unflatten(0, shape).transpose(1, 2) for x in parts))
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return _unpad(torch.cat(outputs), buckets)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention within each document of a bucket: q (N, H, L, D), k and v (N, KV, L, D)."""
    groups = q.shape[1] // k.shape[1]
    if not worth_blocks(q):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1)
    if groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    return blocked_attention(q, k, v)


def _pad(x: Tensor, buckets: Buckets) -> Tensor:
    return x if buckets.in_place else _Pad.apply(x, buckets.source, buckets.target)


def _unpad(x: Tensor, buckets: Buckets) -> Tensor:
    return x if buckets.in_place else _Unpad.apply(x, buckets.target)


class _Pad(Function):
    """Tokens to padded rows.

    No real row reads a padding row and none of the padding leaves `_Unpad`, so padding has no
    gradient; picking the tokens' rows is then the whole backward pass, at a fraction of the cost of
    the scatter-add that autograd would make of an index with repeats.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(target)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (target,) = ctx.saved_tensors
        return grad_outputs[0].index_select(0, target), None, None


class _Unpad(Function):
    """Padded rows to tokens; the padding is dropped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(target)
        ctx.num_rows = x.shape[0]
        return x.index_select(0, target)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (target,) = ctx.saved_tensors
        grad = grad_outputs[0].new_zeros((ctx.num_rows, *grad_outputs[0].shape[1:]))
        return grad.index_copy_(0, target, grad_outputs[0]), None


def _lay_out(lengths: tuple[int, ...], device: torch.device) -> Buckets:
    """Sort documents into buckets by length and index the padded rows."""
    sizes = torch.tensor(lengths)
    starts = sizes.cumsum(0) - sizes
    steps = (sizes + _STEP - 1) // _STEP
    shapes, sources = [], []
    target = torch.empty(sum(lengths), dtype=torch.int64)
    row = 0
    for step in steps.unique().tolist():
        members = (steps == step).nonzero().squeeze(1)
        columns = torch.arange(int(sizes[members].max()))
        ends = sizes[members, None]
        tokens = starts[members, None] + columns.minimum(ends - 1)
        is_real = columns < ends
        target[tokens[is_real]] = row + is_real.flatten().nonzero().squeeze(1)
        shapes.append((len(members), len(columns)))
        sources.append(tokens.flatten())
        row += tokens.numel()
    source = torch.cat(sources)
    in_place = torch.equal(source, torch.arange(len(target)))
    return Buckets(tuple(shapes), source.to(device), target.to(device), in_place)
