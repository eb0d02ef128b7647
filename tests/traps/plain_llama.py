"""Llama as its paper writes it: one document, one position and one head at a time, in float64.

It shares nothing with the product but the weights: no packing, no cache, no padding, no position
that is not counted from the document's first token.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.heads import ScoreHead
from kernels.model import Attention, CausalLM, FeedForward, Llama, RMSNorm


def hidden_states(llama: Llama, tokens: list[int]) -> Tensor:
    """After the final norm: (T, E)."""
    x = llama.embedding.weight[tokens].double()
    for layer in llama.layers:
        x = x + attention(layer.attention, norm(layer.attention_norm, x), llama.config.rope_theta)
        x = x + feed_forward(layer.feed_forward, norm(layer.feed_forward_norm, x))
    return norm(llama.norm, x)


def norm(part: RMSNorm, x: Tensor) -> Tensor:
    root_mean_square = (x.square().mean(-1, keepdim=True) + part.eps).sqrt()
    return x / root_mean_square * part.weight.double()


def feed_forward(part: FeedForward, x: Tensor) -> Tensor:
    gate, up = (x @ part.gate_up.weight.double().T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ part.down.weight.double().T


def attention(part: Attention, x: Tensor, theta: float) -> Tensor:
    heads = (x @ part.qkv.weight.double().T).view(len(x), -1, part.head_dim)
    queries, keys, values = heads.split([part.n_heads, part.n_kv_heads, part.n_kv_heads], dim=1)
    queries, keys = turned(queries, theta), turned(keys, theta)
    rows = []
    for t in range(len(x)):
        row = []
        for h in range(part.n_heads):
            shared = h * part.n_kv_heads // part.n_heads
            distances = keys[: t + 1, shared] @ queries[t, h] / math.sqrt(part.head_dim)
            row.append(distances.softmax(0) @ values[: t + 1, shared])
        rows.append(torch.cat(row))
    return torch.stack(rows) @ part.output.weight.double().T


def turned(heads: Tensor, theta: float) -> Tensor:
    """Rotary positions: at position p, dimensions 2i and 2i + 1 turn by p · theta^(-2i/D)."""
    length, _, size = heads.shape
    frequencies = theta ** (-torch.arange(0, size, 2).double() / size)
    angles = torch.arange(length)[:, None, None] * frequencies
    even, odd = heads[..., 0::2], heads[..., 1::2]
    pairs = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(pairs, dim=-1).flatten(-2)


def logits(model: CausalLM, tokens: list[int]) -> Tensor:
    """Next-token logits of every position of one document: (T, V)."""
    return hidden_states(model.backbone, tokens) @ model.lm_head.weight.double().T


def logprobs(
    model: CausalLM, prompt: list[int], response: list[int], temperature: float = 1.0
) -> Tensor:
    """Log-probability of each token of the response: (len(response),)."""
    table = (logits(model, prompt + response) / temperature).log_softmax(-1)
    before = len(prompt) - 1  # the first token of the response is predicted by the prompt's last
    return torch.stack([table[before + i, token] for i, token in enumerate(response)])


def scores(model: torch.nn.Module, tokens: list[int]) -> Tensor:
    """What the scalar head of a reward or value model gives at every token: (T,)."""
    head = model.score
    assert isinstance(head, ScoreHead)
    return hidden_states(model.backbone, tokens) @ head.weight.double().squeeze(0)
