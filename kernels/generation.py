"""Sampling responses from a language model.

Work is saved in four places: prompts are sorted by length, so that a batch wastes few columns of
the cache; equal prompts (K samples each, in rejection sampling) are read once; rows that have
finished are dropped; and a token is drawn by inverting the cumulative distribution, on CPU 22 times
as fast as `multinomial`. Dropping rows alone makes varied lengths about twice as fast (filling
their places with the next prompts is no faster on CPU, and every step then has rows of all ages).

Legend: B rows, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.decoding import prefill
from kernels.model import CausalLM

DROP_BELOW = 0.85
"""Share of live rows at which the finished ones leave the batch: a copy of the cache for at least
15 % less work in every step to come."""

DROP_BELOW_CUDA = 0.5
"""On a GPU a step takes hardly longer with twice the rows, and another number of rows is recorded
anew."""

SMALLEST_TEMPERATURE = 1e-3
"""Logits divided by less leave fp32's range, and what is drawn is greedy long before."""

_LARGEST_UNIFORM = 1 - 2**-22
"""Times any fp32 sum this is still less than the sum, so no draw falls beyond the last token."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. ValueError for numbers out of range."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token each time; else at least `SMALLEST_TEMPERATURE`."""
    top_p: float = 1.0
    """Draw only from the likeliest tokens that together reach this probability."""

    def __post_init__(self) -> None:
        has_temperature = self.temperature == 0 or self.temperature >= SMALLEST_TEMPERATURE
        if self.max_new_tokens < 1 or not has_temperature or not 0 < self.top_p <= 1:
            raise ValueError(
                f"{self} is out of range. Give max_new_tokens of at least 1, a temperature of 0 or "
                f"of at least {SMALLEST_TEMPERATURE} and a top_p above 0 and at most 1."
            )


@dataclass(frozen=True)
class Generations:
    """One response for each prompt, in the prompts' order."""

    responses: list[list[int]]
    """Token ids; the last one is the EOS where the response finished."""
    finished: list[bool]
    """False where max_new_tokens cut the response off."""
    logprobs: list[list[float]]
    """Of each token under softmax(logits / temperature), as `CausalLM` gives it; of greedy tokens
    at temperature 1. top_p does not enter: it would make the logprobs of a policy that no trainer
    computes."""


@torch.inference_mode()
def generate(
    model: CausalLM,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    *,
    eos_id: int,
    seed: int,
    places: Sequence[int] | None = None,
    max_batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> Generations:
    """Draw one response to each prompt, in the model's own precision.

    The random number behind each token belongs to (seed, prompt index, step), so a response depends
    neither on the batch size nor on the other prompts. `places` are the prompts' indices where they
    are one rank's share of a longer list: then it does not depend on the number of ranks either.
    `on_progress` is told how many responses are finished, and of how many. The model must hold all
    its weights (no ZeRO-3 shards).

    Raises ValueError, with the prompt's index, for a prompt that is empty or leaves no room for
    max_new_tokens in the model's context.
    """
    _check_lengths(prompts, model.config.max_seq_len - sampling.max_new_tokens)
    own = torch.tensor(range(len(prompts)) if places is None else places, dtype=torch.int64)
    shape = (int(own.max()) + 1 if len(own) else 0, sampling.max_new_tokens)
    uniforms = torch.rand(shape, generator=torch.Generator().manual_seed(seed))[own]
    # Equal prompts are neighbours too, so that a batch finds them together.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]))
    rows: dict[int, _Row] = {}
    for start in range(0, len(order), max_batch_size):
        chosen = order[start : start + max_batch_size]
        batch = _Batch(model, [prompts[i] for i in chosen], sampling, eos_id, uniforms[chosen])
        for num_finished in batch.steps():
            if on_progress is not None:
                on_progress(start + num_finished, len(order))
        rows.update(zip(chosen, batch.rows(), strict=True))
    in_order = [rows[i] for i in range(len(prompts))]
    return Generations(
        responses=[row.tokens for row in in_order],
        finished=[row.tokens[-1] == eos_id for row in in_order],
        logprobs=[row.logprobs for row in in_order],
    )


def _check_lengths(prompts: Sequence[list[int]], most: int) -> None:
    for index, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= most:
            raise ValueError(
                f"Prompt {index} has {len(prompt)} tokens; it needs at least 1, and beside "
                f"max_new_tokens the model's context has room for {most}. "
                "Shorten the prompt or lower max_new_tokens."
            )


@dataclass(frozen=True)
class _Row:
    tokens: list[int]
    logprobs: list[float]


class _Batch:
    """The responses to a few prompts, written side by side."""

    def __init__(
        self,
        model: CausalLM,
        prompts: list[list[int]],
        sampling: Sampling,
        eos_id: int,
        uniforms: Float[Tensor, "B steps"],
    ) -> None:
        device = model.lm_head.weight.device
        self._model = model
        self._prompts = prompts
        self._sampling = sampling
        self._eos_id = eos_id
        self._uniforms = uniforms.to(device)
        self._tokens = torch.empty(uniforms.shape, dtype=torch.int64, device=device)
        self._logprobs = torch.empty(uniforms.shape, dtype=torch.float32, device=device)
        self._lengths = torch.full((len(prompts),), sampling.max_new_tokens, device=device)

    def steps(self) -> Iterator[int]:
        """Write the responses; after each token, the number of finished responses."""
        decoder, logits = prefill(self._model, self._prompts, self._sampling.max_new_tokens)
        drop_below = DROP_BELOW_CUDA if logits.is_cuda else DROP_BELOW
        alive = torch.arange(len(self._prompts), device=logits.device)  # the rows still in cache
        has_ended = torch.zeros_like(alive, dtype=torch.bool)
        for step in range(self._sampling.max_new_tokens):
            tokens, logprobs = draw(logits, self._uniforms[alive, step], self._sampling)
            # A finished row that is still in the cache writes on, beyond its recorded length.
            self._tokens[alive, step] = tokens
            self._logprobs[alive, step] = logprobs
            ends = (tokens == self._eos_id) & ~has_ended
            self._lengths[alive[ends]] = step + 1
            has_ended |= ends
            num_left = len(alive) - int(has_ended.sum())
            if num_left == 0 or step + 1 == self._sampling.max_new_tokens:
                break
            yield len(self._prompts) - num_left
            if num_left <= drop_below * len(alive):
                keep = (~has_ended).nonzero().squeeze(1)
                decoder.keep(keep)
                alive, has_ended, tokens = alive[keep], has_ended[keep], tokens[keep]
            logits = decoder.step(tokens)
        yield len(self._prompts)

    def rows(self) -> Iterator[_Row]:
        """The responses, once all steps are done."""
        records = (self._tokens, self._logprobs, self._lengths)
        for tokens, logprobs, length in zip(*(r.tolist() for r in records), strict=True):
            yield _Row(tokens[:length], logprobs[:length])


def draw(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], sampling: Sampling
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Each row's token and its log-probability; see `Generations.logprobs` for which one.

    The token is the first whose cumulative probability exceeds the row's uniform number in [0, 1).
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, _pick(logits.log_softmax(dim=-1), tokens)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        likeliest, index = probabilities.sort(dim=-1, descending=True, stable=True)
        is_beyond = likeliest.cumsum(dim=-1) - likeliest >= sampling.top_p
        is_beyond[:, 0] = False  # a top_p that is 0 in the logits' precision leaves the likeliest
        tokens = _pick(index, _invert(likeliest.masked_fill(is_beyond, 0), uniforms))
    else:
        tokens = _invert(probabilities, uniforms)
    return tokens, _pick(probabilities, tokens).log()


def _invert(weights: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    cumulative = weights.cumsum(dim=-1)
    # The last sum is 1 only up to rounding, and less than 1 under top_p.
    threshold = cumulative[:, -1:] * uniforms[:, None].clamp(max=_LARGEST_UNIFORM)
    # To the right: a token of probability 0 leaves the sum as it was and is passed over.
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1)


def _pick(table: Tensor, columns: Int[Tensor, " B"]) -> Tensor:
    return table.gather(1, columns[:, None]).squeeze(1)
