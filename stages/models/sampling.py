"""Sampling responses with the prompts dealt out over the ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from data_contracts.errors import UserError
from kernels.generation import SMALLEST_TEMPERATURE, Sampling, generate
from kernels.model import CausalLM
from stages.runtime.stage import WorkDir
from stages.text.dialogue import Overlong, render_prompt
from stages.text.tokenizer import Tokenizer


def _not_tiny(temperature: float) -> float:
    if 0 < temperature < SMALLEST_TEMPERATURE:
        raise ValueError(f"too small to divide logits by; give at least {SMALLEST_TEMPERATURE}")
    return temperature


Temperature = Annotated[float, Field(ge=0), AfterValidator(_not_tiny)]
"""Of sampling; 0 takes the likeliest token each time."""

PositiveTemperature = Annotated[float, Field(gt=0), AfterValidator(_not_tiny)]
"""Where responses have to differ."""


@dataclass(frozen=True)
class Sample:
    """One sampled response, as ids and as text.

    `finished` when the model wrote its EOS and no other control piece before it: one that opened
    the next turn by itself shows in no text, and would be learnt.
    """

    tokens: list[int]
    text: str
    finished: bool

    @property
    def is_whole(self) -> bool:
        """Whether it ended by itself, says something, and is text (no half of a letter)."""
        return self.finished and says_something(self.text)


def says_something(text: str) -> bool:
    """Whether a response's text is not blank and holds no half of a letter."""
    return bool(text.strip()) and "\ufffd" not in text


def fitting_prompts(
    rows: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    max_prompt_tokens: int,
    overlong: Overlong,
) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Rows of the prompts table whose rendering leaves room for a response, and their tokens.

    Raises UserError, naming the prompt, when one is too long and `overlong` is "error".
    """
    kept, rendered = [], []
    for row in rows:
        tokens = render_prompt(row["messages"], tokenizer)
        if len(tokens) <= max_prompt_tokens:
            kept.append(row)
            rendered.append(tokens)
        elif overlong == "error":
            raise UserError(
                f"Prompt {row['prompt_id']} of source {row.get('source', 'prompts')} has "
                f"{len(tokens)} tokens; {max_prompt_tokens} fit beside the response",
                "Shorten or remove it, raise the model's max_seq_len, or set overlong=drop",
            )
    if not kept:
        raise UserError(
            f"None of {len(rows)} prompts fits into {max_prompt_tokens} tokens",
            "Supply prompts for this domain and split, or a longer context",
        )
    return kept, rendered


def sample_responses(
    model: CausalLM,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    tokenizer: Tokenizer,
    seed: int,
    work: WorkDir,
    batch_size: int,
    label: str = "sample",
) -> list[Sample]:
    """One response to each prompt, in order, on every rank.

    Each rank generates every world_size-th prompt and all gather the results: ranks may finish at
    different times, since nothing collective runs inside. However many there are, a prompt's
    response rests on the same random numbers. `batch_size` of them are written side by side.
    """
    rank = work.rank
    places = range(rank.index, len(prompts), rank.world_size)
    out = generate(
        model,
        [prompts[i] for i in places],
        sampling,
        eos_id=tokenizer.eos_id,
        seed=seed,
        places=places,
        max_batch_size=batch_size,
        on_progress=lambda done, total: work.progress(done, total, label),
    )
    own = [
        sample_of(tokens, finished, tokenizer)
        for tokens, finished in zip(out.responses, out.finished, strict=True)
    ]
    shards = rank.gather_objects(own)
    return [shards[i % rank.world_size][i // rank.world_size] for i in range(len(prompts))]


def sample_of(tokens: list[int], has_eos: bool, tokenizer: Tokenizer) -> Sample:
    """What was drawn, as text."""
    body = response_body(tokens, tokenizer.eos_id)
    is_text = not any(tokenizer.is_control(piece) for piece in set(body))
    return Sample(tokens, tokenizer.decode(body), has_eos and is_text)


def response_body(tokens: list[int], eos_id: int) -> list[int]:
    """The response without its closing EOS."""
    return tokens[:-1] if tokens and tokens[-1] == eos_id else tokens
