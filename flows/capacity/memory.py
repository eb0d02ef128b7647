"""Bytes that one rank allocates for one model: what stays, and what comes and goes.

It follows the engine (`stages.runtime.engine`, DeepSpeed 0.19.8) and the kernels line by line; the
tests compare every part with bytes counted on the real ones. Sizes are rounded to no alignment:
flat buffers are padded by a few elements.

Legend: E model dimension, F feed-forward dimension, H heads, KV key-value heads, D head dimension,
V vocabulary, T tokens of a micro-batch, R its rows with a loss, N ranks.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from kernels.cross_entropy import CHUNK_ELEMENTS_CUDA
from kernels.generation import DROP_BELOW_CUDA
from kernels.heads import num_scorer_parameters
from kernels.model import ModelConfig
from stages.runtime.distributed import Rank
from stages.runtime.settings import BUCKET_ELEMENTS, EngineSettings, effective_stage

Kind = Literal["policy", "scorer"]
"""A language model, or a reward or value model: a scalar in place of the output layer."""

FP32, BF16 = 4, 2

_GRADIENTS = {
    ("fp32", 0): (4, 0),
    ("fp32", 1): (4, 4),  # all of them, and the copy of the rank's share that is reduced
    ("fp32", 2): (0, 8),  # the share's sum, and what is added to it
    ("fp32", 3): (0, 4),
    ("bf16", 1): (6, 0),  # fp32 sums of all, and the bf16 gradients added to them
    ("bf16", 2): (0, 6),  # the same of the share
    ("bf16", 3): (0, 4),  # the share's fp32 sums; bf16 gradients leave parameter by parameter
}
"""Bytes a parameter by precision and ZeRO stage: on every rank, and divided by the ranks."""

_LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed gathers at most this many sharded weights ahead of their use (max_live_parameters)."""
_PREFETCH_ELEMENTS = 50_000_000
"""And this many at a time, into a buffer from which they are copied (prefetch_bucket_size)."""
_ALLREDUCE_ELEMENTS = 500_000_000
"""Gradients that an unsharded fp32 engine reduces at a time."""


@dataclass(frozen=True)
class State:
    """What a model under training keeps on a rank from step to step, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW's moments and, in bf16 or sharded, the fp32 masters."""
    host: int = 0
    """In the machine's memory, with offload_optimizer."""

    @property
    def on_card(self) -> int:
        """All but the host's."""
        return self.weights + self.gradients + self.optimizer


def num_parameters(model: ModelConfig, kind: Kind) -> int:
    """Parameters of a policy, or of a scorer on its transformer."""
    return model.num_parameters() if kind == "policy" else num_scorer_parameters(model)


def zero_stage(engine: EngineSettings, num_ranks: int) -> int:
    """The ZeRO stage that the engine really runs."""
    return effective_stage(engine, Rank(0, num_ranks, 0, torch.device("cpu")))


def trained_state(parameters: int, engine: EngineSettings, num_ranks: int) -> State:
    """Of a model under training, at the moment when all its gradients are there."""
    stage = zero_stage(engine, num_ranks)
    replicated, shared = _GRADIENTS[engine.precision, stage]
    masters_and_moments = 8 if stage == 0 else 12
    share = 1 if stage == 0 else num_ranks
    optimizer = masters_and_moments * parameters // share
    gradients = replicated * parameters + shared * parameters // num_ranks
    weights = element_bytes(engine) * parameters // (num_ranks if stage == 3 else 1)
    if not engine.offload_optimizer:
        return State(weights, gradients, optimizer)
    on_host = 20 if stage == 3 else 18  # + the share's gradients to step on, and a copy to send
    kept = {1: 4 * parameters, 2: gradients, 3: 0}[stage]
    return State(weights, kept, 0, on_host * parameters // num_ranks)


def frozen_weights(parameters: int, engine: EngineSettings, num_ranks: int) -> int:
    """Of a model that only evaluates: sharded under ZeRO-3, else whole."""
    is_sharded = engine.zero_stage == 3 and num_ranks > 1
    return element_bytes(engine) * parameters // (num_ranks if is_sharded else 1)


def plain_copy(parameters: int, engine: EngineSettings, num_ranks: int) -> int:
    """Of the whole policy that ZeRO-3 gathers to sample from; up to ZeRO-2 it is the policy."""
    is_sharded = zero_stage(engine, num_ranks) == 3
    return element_bytes(engine) * parameters if is_sharded else 0


def gathered_weights(parameters: int, engine: EngineSettings, num_ranks: int) -> int:
    """Sharded weights that are whole while a pass needs them, and the buffer they arrive in."""
    if engine.zero_stage < 3 or num_ranks == 1:
        return 0
    live = min(parameters, _LIVE_ELEMENTS) + min(parameters, _PREFETCH_ELEMENTS)
    return element_bytes(engine) * live


def reduction(model: ModelConfig, parameters: int, engine: EngineSettings, num_ranks: int) -> int:
    """Buffers through which gradients leave, bucket by bucket, during a backward pass."""
    bucket = min(BUCKET_ELEMENTS, parameters)
    largest = largest_parameter(model)
    stage = zero_stage(engine, num_ranks)
    if stage == 3:
        return element_bytes(engine) * (bucket + 3 * largest)
    if _reduces_at_the_boundary(engine, stage):
        return 0
    return element_bytes(engine) * 2 * (bucket + largest)


def boundary(parameters: int, engine: EngineSettings, num_ranks: int) -> int:
    """Copies of all gradients while they are summed over the ranks, after the last backward pass.

    The activations are gone by then.
    """
    stage = zero_stage(engine, num_ranks)
    if num_ranks == 1 or not _reduces_at_the_boundary(engine, stage):
        return 0
    if engine.precision == "fp32":
        return FP32 * min(parameters, _ALLREDUCE_ELEMENTS)
    return FP32 * parameters  # flattened as one


def _reduces_at_the_boundary(engine: EngineSettings, stage: int) -> bool:
    if stage == 0:
        return True
    return stage == 1 and engine.precision == "bf16" and not engine.offload_optimizer


@dataclass(frozen=True)
class MicroBatch:
    """The largest forward and backward pass of a rank."""

    num_tokens: int
    num_rows: int
    """Positions that reach the output layer, or that are scored."""
    mode: Literal["loss", "logprobs", "score"] = "loss"


def activations(
    model: ModelConfig, engine: EngineSettings, batch: MicroBatch, *, fused: bool = True
) -> int:
    """The most that a forward and backward pass holds beside weights and gradients.

    The peak comes at the output layer, or in the backward pass of the layer that was read last.
    `fused` is the path of the GPU; without it, that of the CPU, which keeps more.
    """
    size = element_bytes(engine)
    layer = batch.num_tokens * layer_bytes(model, size, fused)
    backward = batch.num_tokens * size * 2 * (model.ffn_hidden + model.dim)
    norm = batch.num_tokens * model.dim * 2 * size
    at_the_head = norm + head_bytes(model, size, batch, fused)
    rotation = batch.num_tokens * FP32 * model.head_dim
    if not engine.activation_checkpointing:
        return model.n_layers * layer + rotation + max(at_the_head, backward)
    inputs = model.n_layers * batch.num_tokens * size * model.dim
    return inputs + rotation + max(at_the_head, layer + backward)


def layer_bytes(model: ModelConfig, size: int, fused: bool) -> int:
    """What one layer keeps of one token for its backward pass; `size` bytes an element."""
    dim, hidden = model.dim, model.ffn_hidden
    keys = model.n_kv_heads * model.head_dim
    norms = 2 * (size * dim + FP32 + size * dim)  # input, 1 / rms, output
    attention = size * (dim + keys)  # rotated queries and keys
    attention += size * (dim + 2 * keys)  # the projection, of which the values are a part
    attention += size * dim + FP32 * model.n_heads  # output, log-normaliser
    feed_forward = size * 3 * hidden  # gate and up, their product
    if not fused:
        attention += size * dim  # output, heads brought together
        feed_forward += size * hidden  # silu(gate)
    return norms + attention + feed_forward


def head_bytes(model: ModelConfig, size: int, batch: MicroBatch, fused: bool) -> int:
    """Of the output layer, of which [R, V] never exists; or of a scorer's fp32 head."""
    if batch.mode == "score":
        return 2 * FP32 * batch.num_rows * model.dim
    hidden_and_gradient = 2 * size * batch.num_rows * model.dim
    weight_gradient = FP32 * model.vocab_size * model.dim
    a_logit = FP32 if batch.mode == "loss" else 2 * FP32
    if size == BF16:
        a_logit += BF16  # the gradient, rounded for its products
        if fused:  # a chunk's share in fp32, added to the sum of all; the CPU adds slices
            weight_gradient *= 2
    chunk = min(batch.num_rows * model.vocab_size, CHUNK_ELEMENTS_CUDA)
    return hidden_and_gradient + weight_gradient + a_logit * chunk


def evaluation(model: ModelConfig, size: int, num_tokens: int) -> int:
    """The most that a forward pass without gradients holds: one layer's feed-forward, or a chunk.

    The chunks of logits are those of log-probabilities; a scorer has none.
    """
    feed_forward = num_tokens * size * (3 * model.ffn_hidden + 4 * model.dim)
    chunks = FP32 * min(num_tokens * model.vocab_size, CHUNK_ELEMENTS_CUDA)
    return max(feed_forward, chunks + 2 * num_tokens * size * model.dim)


def kv_cache(model: ModelConfig, size: int, num_rows: int, num_columns: int) -> int:
    """Keys and values of all layers for so many responses side by side."""
    return 2 * size * model.n_layers * model.n_kv_heads * model.head_dim * num_rows * num_columns


def generation(
    model: ModelConfig, size: int, cache: int, num_rows: int, num_prompt_tokens: int
) -> int:
    """The most that generation holds beside the weights and the cache.

    Either prompts are being read, or finished rows leave and the keys exist twice.
    """
    keys = model.n_kv_heads * model.head_dim
    attention = num_prompt_tokens * size * (2 * model.dim + 3 * keys)
    reading = evaluation(model, size, num_prompt_tokens) + attention
    dropping = int(DROP_BELOW_CUDA * cache / 2)
    logits = 5 * FP32 * num_rows * model.vocab_size  # and what is made of them to draw a token
    return max(reading, dropping) + logits


def largest_parameter(model: ModelConfig) -> int:
    """Elements of the largest matrix."""
    qkv = model.head_dim * (model.n_heads + 2 * model.n_kv_heads)
    return model.dim * max(model.vocab_size, 2 * model.ffn_hidden, qkv)


def element_bytes(engine: EngineSettings) -> int:
    """Bytes of a weight and of an activation."""
    return BF16 if engine.precision == "bf16" else FP32
