"""Preference pairs as token sequences, and how often a reward model ranks them as people did."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from data_contracts.errors import UserError
from data_contracts.ratings import Rating, SafetyLabel
from kernels.attention import Documents
from stages.models.comparison import wilson_interval
from stages.models.scoring import score_sequences
from stages.runtime.distributed import Rank
from stages.text.dialogue import render_prompt, render_response
from stages.text.tokenizer import Tokenizer

OverlongPair = Literal["error", "drop", "truncate"]


@dataclass(frozen=True)
class Pair:
    """One comparison: prompt and response of both sides, its strength and its safety label."""

    chosen: list[int]
    rejected: list[int]
    rating: Rating | None
    safety_label: SafetyLabel | None
    id: str = ""
    """Of the preference, to name it where training fails."""


class PairScores(NamedTuple):
    """Raw scores (logits) of both sides of P pairs, fp32 on the CPU."""

    chosen: Tensor
    rejected: Tensor

    @property
    def margins(self) -> Tensor:
        """Score of the chosen side minus that of the rejected one (P,)."""
        return self.chosen - self.rejected


def render_pairs(
    rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, max_tokens: int, overlong: OverlongPair
) -> list[Pair]:
    """Rows of the preferences table as pairs of at most `max_tokens` tokens a side.

    "truncate" cuts the longer responses at their end; a prompt that leaves no room for a response
    is dropped even then. Raises UserError, naming the row, when `overlong` is "error".
    """
    pairs = []
    for row in rows:
        prompt = render_prompt(row["messages"], tokenizer)
        chosen = prompt + render_response(row["chosen"], tokenizer)
        rejected = prompt + render_response(row["rejected"], tokenizer)
        if max(len(chosen), len(rejected)) > max_tokens:
            if overlong == "error":
                raise UserError(
                    f"Preference {row['preference_id']} of source {row['source']} has "
                    f"{max(len(chosen), len(rejected))} tokens, the reward model reads "
                    f"{max_tokens}",
                    "Shorten it, raise max_tokens, or set overlong=drop or truncate",
                )
            chosen, rejected = chosen[:max_tokens], rejected[:max_tokens]
            if overlong == "drop" or len(prompt) >= max_tokens or chosen == rejected:
                continue
        pairs.append(
            Pair(
                chosen,
                rejected,
                Rating(row["rating"]) if row["rating"] else None,
                SafetyLabel(row["safety_label"]) if row["safety_label"] else None,
                row["preference_id"],
            )
        )
    return pairs


def when_held_out(overlong: OverlongPair) -> OverlongPair:
    """What to do with an overlong held-out pair: cut it like a training pair, or leave it out, so
    that nothing fails after the training."""
    return "truncate" if overlong == "truncate" else "drop"


def flat_pairs(pairs: Sequence[Pair], device: torch.device) -> tuple[Tensor, Documents]:
    """Tokens and documents of a micro-batch: all chosen sides, then all rejected ones.

    An empty list gives one token a side, so that every rank takes part in the collectives.
    """
    sides = [p.chosen for p in pairs] + [p.rejected for p in pairs] or [[0], [0]]
    tokens = torch.tensor([t for side in sides for t in side], dtype=torch.int64, device=device)
    return tokens, Documents.of([len(side) for side in sides], device)


def safety_targets(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Whether each side is safe (2P,) bool, and which sides are labelled (2P,) bool.

    In the order of `flat_pairs`; the annotators' label says it for both sides at once (§3.2.1).
    """
    chosen_safe = [p.safety_label != SafetyLabel.both_unsafe for p in pairs]
    rejected_safe = [p.safety_label == SafetyLabel.both_safe for p in pairs]
    labelled = [p.safety_label is not None for p in pairs] * 2
    return torch.tensor(chosen_safe + rejected_safe), torch.tensor(labelled)


def score_pairs(
    reward_model: Callable[[Tensor, Documents], Tensor], pairs: Sequence[Pair], rank: Rank
) -> PairScores:
    """Scores of both sides of every pair, on every rank."""
    sides = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    return PairScores(*score_sequences(reward_model, sides, rank).chunk(2))


def accuracy_rows(
    reward_model: str, test_set: str, pairs: Sequence[Pair], margins: Tensor
) -> list[dict[str, Any]]:
    """Accuracy over a test set and over each rating in it (Tables 7 and 8), Wilson 95 % intervals.

    A tie counts as half right.
    """
    groups: dict[str | None, list[int]] = {None: list(range(len(pairs)))}
    for i, pair in enumerate(pairs):
        if pair.rating is not None:
            groups.setdefault(pair.rating.value, []).append(i)
    order = [None, *(r.value for r in Rating)]
    return [
        _accuracy(reward_model, test_set, rating, margins[groups[rating]])
        for rating in order
        if groups.get(rating)
    ]


def _accuracy(
    reward_model: str, test_set: str, rating: str | None, margins: Tensor
) -> dict[str, Any]:
    correct = float((margins > 0).sum() + 0.5 * (margins == 0).sum())
    low, high = wilson_interval(correct, len(margins))
    return {
        "accuracy_id": f"{reward_model}:{test_set}:{rating or 'all'}",
        "reward_model": reward_model,
        "test_set": test_set,
        "rating": rating,
        "num_pairs": len(margins),
        "accuracy": correct / len(margins),
        "low": low,
        "high": high,
    }
