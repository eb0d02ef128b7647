"""The best of K samples: which one is learnt, and at which temperature to draw them (§3.2.3)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stages.models.batches import Example
from stages.models.rewards import Scores
from stages.models.sampling import Sample, response_body, says_something
from stages.text.dialogue import render_prompt, render_response
from stages.text.tokenizer import Tokenizer


def choose_best(
    candidates: Sequence[int],
    samples: Sequence[Sample],
    scores: Scores,
    unsafe_below: float = -math.inf,
) -> int | None:
    """The candidate with the highest reward among those that are whole.

    A response that the gate caught ranks below every one that it did not: the two kinds of
    reward lie on different scales and are not compared. Of equal ones the first is taken. None
    when every sample was cut off, or has a safety score below `unsafe_below`: the best of answers
    that are all unsafe is no answer to learn.
    """
    usable = [i for i in candidates if samples[i].is_whole]
    if all(float(scores.safety[i]) < unsafe_below for i in usable):
        return None
    return max(usable, key=lambda i: (not bool(scores.gated[i]), float(scores.reward[i])))


def choice_counts(rows: Sequence[dict[str, Any]], unsafe_below: float) -> dict[str, float]:
    """What there was to choose from, over rows of the scored_samples table of one iteration.

    Sets without a usable sample, sets whose usable samples are all unsafe, sets whose best answer
    shares its reward with another one, and single samples that were cut off.
    """
    sets: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        sets.setdefault(row["prompt_id"], []).append(row)
    usable = [
        [r for r in s if r["finished"] and says_something(r["response"])] for s in sets.values()
    ]
    best = [next((r for r in s if r["best"]), None) for s in sets.values()]
    return {
        "num_cut_off": float(sum(not row["finished"] for row in rows)),
        "num_all_cut_off": float(sum(not s for s in usable)),
        "num_all_unsafe": float(
            sum(bool(s) and all(r["safety_score"] < unsafe_below for r in s) for s in usable)
        ),
        "num_ties": float(
            sum(
                b is not None and sum(r["reward"] == b["reward"] for r in s) > 1
                for s, b in zip(usable, best, strict=True)
            )
        ),
    }


def best_examples(
    best: Sequence[dict[str, Any]], tokenizer: Tokenizer, sequence_length: int
) -> list[Example]:
    """The best samples that fit, by the ids that were drawn and scored.

    Their text encoded anew can be another sequence of ids, which nobody scored (trap 16). Only
    where this tokenizer reads the ids as another text, so that another one wrote them, is the text
    what there is to learn.
    """
    examples = []
    for row in best:
        prompt, response = render_prompt(row["messages"], tokenizer), row["response_tokens"]
        if not reads_as(response, row["response"], tokenizer):
            response = render_response(row["response"], tokenizer)
        loss_mask = [False] * len(prompt) + [True] * len(response)
        examples.append(Example(prompt + response, loss_mask, row["sample_id"]))
    return [example for example in examples if len(example.tokens) <= sequence_length]


def reads_as(tokens: list[int], text: str, tokenizer: Tokenizer) -> bool:
    """Whether a response's ids are this tokenizer's for its text."""
    if max(tokens, default=0) >= tokenizer.vocab_size:
        return False
    return tokenizer.decode(response_body(tokens, tokenizer.eos_id)) == text


def best_temperature(
    rewards: dict[float, Tensor], domains: Sequence[str]
) -> tuple[float, dict[float, float]]:
    """The temperature of a grid whose best of K is best, and what each one reaches.

    rewards: (N, K) of each temperature, -inf where a sample cannot be chosen; domains: of the N
    prompts. A temperature's worth is the mean over prompts of the maximum over K, in standard
    deviations of the domain over the whole grid, all domains alike: rewards of two models have no
    common unit. A prompt counts when any temperature has a usable sample for it; one that has none
    gets the worst reward of the domain. Without a single usable sample all are worth 0.
    """
    counted = torch.stack([r.max(dim=1).values for r in rewards.values()]).isfinite().any(dim=0)
    worth = dict.fromkeys(rewards, 0.0)
    names = sorted({d for d, used in zip(domains, counted.tolist(), strict=True) if used})
    for name in names:
        own = torch.tensor([d == name for d in domains]) & counted
        pool = torch.cat([r[own].flatten() for r in rewards.values()])
        pool = pool[pool.isfinite()]
        mean, spread = pool.mean(), pool.std(correction=0) + 1e-6
        for temperature, reward in rewards.items():
            best = reward[own].max(dim=1).values.clamp(min=pool.min())
            worth[temperature] += float((best - mean).mean() / spread) / len(names)
    return max(worth, key=lambda t: worth[t]), worth
