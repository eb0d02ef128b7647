"""The Llama 2 transformer over flat batches of documents (§2.2).

Pre-normalised decoder: RMSNorm, SwiGLU, rotary positions, grouped-query attention, no biases. The
query, key and value projections are one matrix, and so are the gate and up projections: fewer and
larger products. Every parameter is used inside its own module's forward, as ZeRO-3 needs.

Legend: T tokens, R rows with a loss or a score (or all T), V vocabulary, H heads, KV key-value
heads, D head dimension, C = D/2 rotated pairs, E model dimension, I and O the sides of a matrix.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.attention import Documents, packed_attention
from kernels.cross_entropy import (
    TokenLogprobs,
    linear_cross_entropy_sum,
    linear_logprobs,
    measured_logprobs,
)
from kernels.pointwise import rms_norm, swiglu
from kernels.products import linear
from kernels.rope import rotate, rotation_table

INIT_STD = 0.02

Mode = Literal["loss", "logprobs", "measure"]
"""What a language model makes of its targets; see `CausalLM.forward`."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a Llama. ValueError when the heads do not divide as they must."""

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_hidden: int
    max_seq_len: int = 4096
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    """Whether the output layer's weight is the embedding's (Llama 2: no)."""

    def __post_init__(self) -> None:
        if self.dim % (2 * self.n_heads):
            raise ValueError(
                f"dim {self.dim} does not split into {self.n_heads} heads of even size. "
                "Choose dim as a multiple of 2 * n_heads."
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"{self.n_heads} heads cannot share {self.n_kv_heads} key-value heads evenly. "
                "Choose n_kv_heads as a divisor of n_heads."
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def residual_std(self) -> float:
        """Initial standard deviation of the projections into the residual stream.

        Two of them a layer add up there, so each is scaled down by the root of their number.
        """
        return INIT_STD / math.sqrt(2 * self.n_layers)

    def num_parameters(self) -> int:
        """Parameters of the causal language model, tied embeddings counted once."""
        attention = 2 * self.dim * (self.n_heads + self.n_kv_heads) * self.head_dim
        layer = attention + 3 * self.dim * self.ffn_hidden + 2 * self.dim
        num_vocab_matrices = 1 if self.tie_embeddings else 2
        return self.n_layers * layer + self.dim + num_vocab_matrices * self.vocab_size * self.dim

    def flops_per_token(self, num_context_tokens: int) -> float:
        """Floating-point operations to train on one token, forward and backward.

        Convention: 6 for each parameter, embeddings included, plus 12 · n_layers · dim ·
        num_context_tokens for attention, counted in full although half of it is masked. Without
        recomputation, so that activation checkpointing does not raise the utilisation it yields.
        """
        return 6.0 * self.num_parameters() + 12.0 * self.n_layers * self.dim * num_context_tokens


class Linear(nn.Module):
    """Linear map without bias, drawn from N(0, std²); left unset where generator is None."""

    def __init__(
        self, in_features: int, out_features: int, std: float, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.weight = _parameter((out_features, in_features), std, generator)

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        """Multiply by the weight [O, I]."""
        return linear(x, self.weight)


class Embedding(nn.Module):
    """Token embeddings, drawn from N(0, 0.02²); left unset where generator is None."""

    def __init__(self, config: ModelConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weight = _parameter((config.vocab_size, config.dim), INIT_STD, generator)

    def forward(self, tokens: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows E"]:
        """Look the tokens' rows up."""
        return F.embedding(tokens, self.weight)


class RMSNorm(nn.Module):
    """Division by the root mean square, times a learned gain; bf16 is computed in fp32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.dim))
        self.eps = config.norm_eps

    def forward(self, x: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
        """Normalise the last dimension."""
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.n_heads = config.n_heads
        self.n_kv_heads = config.n_kv_heads
        width = config.head_dim * (config.n_heads + 2 * config.n_kv_heads)
        self.qkv = Linear(config.dim, width, INIT_STD, generator)
        self.output = Linear(config.dim, config.dim, config.residual_std, generator)

    def project(
        self, x: Float[Tensor, "*rows E"], rotation: Complex[Tensor, "*rows C"]
    ) -> tuple[
        Float[Tensor, "*rows H D"], Float[Tensor, "*rows KV D"], Float[Tensor, "*rows KV D"]
    ]:
        """Rotated queries, rotated keys, and values."""
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        turned, values = heads.split([self.n_heads + self.n_kv_heads, self.n_kv_heads], dim=-2)
        queries, keys = rotate(turned, rotation).split([self.n_heads, self.n_kv_heads], dim=-2)
        return queries, keys, values

    def forward(
        self,
        x: Float[Tensor, "T E"],
        rotation: Complex[Tensor, "T C"],
        documents: Documents,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "R E"]:
        """Attend within each document; what these rows (by default all) gather."""
        queries, keys, values = self.project(x, rotation)
        attended = packed_attention(queries, keys, values, documents).flatten(-2)
        return self.output(_select(attended, rows))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)), gate and up as one projection."""

    def __init__(self, config: ModelConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        self.gate_up = Linear(config.dim, 2 * config.ffn_hidden, INIT_STD, generator)
        self.down = Linear(config.ffn_hidden, config.dim, config.residual_std, generator)

    def forward(self, x: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
        """Apply to each row."""
        return self.down(swiglu(self.gate_up(x)))


class Layer(nn.Module):
    """One transformer layer: attention and feed-forward, each normalised before and added."""

    def __init__(self, config: ModelConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config)
        self.attention = Attention(config, generator)
        self.feed_forward_norm = RMSNorm(config)
        self.feed_forward = FeedForward(config, generator)

    def forward(
        self,
        x: Float[Tensor, "T E"],
        rotation: Complex[Tensor, "T C"],
        documents: Documents,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "R E"]:
        """Add attention and feed-forward to the residual stream of these rows (by default all)."""
        attended = self.attention(self.attention_norm(x), rotation, documents, rows)
        x = _select(x, rows) + attended
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(nn.Module):
    """The transformer without an output layer.

    `activation_checkpointing` keeps only each layer's input for the backward pass and computes the
    rest again: about a third more arithmetic for a fraction of the memory.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.embedding = Embedding(config, generator)
        self.layers = nn.ModuleList(Layer(config, generator) for _ in range(config.n_layers))
        self.norm = RMSNorm(config)

    def rotation(self, positions: Int[Tensor, "*rows"]) -> Complex[Tensor, "*rows C"]:
        """Rotary factors of tokens at these positions, each below the context length."""
        config = self.config
        table = rotation_table(
            config.max_seq_len, config.head_dim, config.rope_theta, positions.device
        )
        return table[positions]

    def forward(
        self,
        tokens: Int[Tensor, " T"],
        documents: Documents,
        rows: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "R E"]:
        """Hidden states after the final norm, of these rows or of all tokens.

        Beyond the attention of the last layer the other rows are not computed: with few of them,
        as for a reward, this saves most of a layer.

        Raises ValueError when a document is longer than the model's context.
        """
        if documents.max_length > self.config.max_seq_len:
            raise ValueError(
                f"A document has {documents.max_length} tokens, the model reads at most "
                f"{self.config.max_seq_len}. Split or shorten it, or raise max_seq_len."
            )
        x = self.embedding(tokens)
        rotation = self.rotation(documents.positions)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for number, layer in enumerate(self.layers, start=1):
            inputs = x, rotation, documents, rows if number == len(self.layers) else None
            if recompute:
                x = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(*inputs)
        return self.norm(x)


class OutputHead(nn.Module):
    """The output layer with the loss inside, so that a batch's logits never exist all at once."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(
        self,
        hidden: Float[Tensor, "R E"],
        targets: Int[Tensor, " R"] | None = None,
        temperature: float = 1.0,
        mode: Mode = "loss",
    ) -> Float[Tensor, ""] | TokenLogprobs | Float[Tensor, " R"] | Float[Tensor, "R V"]:
        """What `CausalLM.forward` says of the mode; without targets, the logits. All in fp32."""
        if targets is None:
            return linear(hidden, self.weight).float()
        if mode == "loss":
            return linear_cross_entropy_sum(hidden, self.weight, targets)
        if mode == "measure":
            return measured_logprobs(hidden, self.weight, targets, temperature)
        return linear_logprobs(hidden, self.weight, targets, temperature)


class CausalLM(nn.Module):
    """Llama with an output layer over the vocabulary.

    Weights are drawn from `generator`: N(0, 0.02²), projections into the residual stream scaled by
    1/sqrt(2 · n_layers). With None they are left unset, for a loader to fill.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        self.config = config
        self.backbone = Llama(config, generator)
        self.lm_head = OutputHead(
            self.backbone.embedding.weight
            if config.tie_embeddings
            else _parameter((config.vocab_size, config.dim), INIT_STD, generator)
        )

    def forget_tokens_from(self, vocab_size: int) -> None:
        """Drop the embeddings and the output rows of this id and all above it, in place."""
        self.config = self.backbone.config = replace(self.config, vocab_size=vocab_size)
        for weight in {self.backbone.embedding.weight, self.lm_head.weight}:  # one, when tied
            if len(weight) > vocab_size:
                weight.data = weight.data[:vocab_size].clone()

    def forward(
        self,
        tokens: Int[Tensor, " T"],
        documents: Documents,
        rows: Int[Tensor, " R"],
        targets: Int[Tensor, " R"],
        temperature: float = 1.0,
        mode: Mode = "loss",
    ) -> Float[Tensor, ""] | TokenLogprobs | Float[Tensor, " R"]:
        """Score next tokens: after position rows[i] comes targets[i].

        Only these rows pass the last feed-forward and the output layer. "loss" gives the sum of
        their cross-entropies in nats (temperature does not enter), "logprobs" each target's
        log-probability and the entropy (R,) under softmax(logits / temperature), "measure" the
        log-probabilities alone and without gradients. All in fp32.
        """
        hidden = self.backbone(tokens, documents, rows)
        return self.lm_head(hidden, targets, temperature, mode)

    def logits(self, tokens: Int[Tensor, " T"], documents: Documents) -> Float[Tensor, "T V"]:
        """Next-token logits of every position, all at once in fp32: for small inputs."""
        return self.lm_head(self.backbone(tokens, documents))


def _select(x: Float[Tensor, "T E"], rows: Int[Tensor, " R"] | None) -> Float[Tensor, "R E"]:
    return x if rows is None else x.index_select(0, rows)


def _parameter(
    shape: tuple[int, int], std: float, generator: torch.Generator | None
) -> nn.Parameter:
    weight = torch.empty(shape)
    if generator is not None:
        weight.normal_(0.0, std, generator=generator)
    return nn.Parameter(weight)
