"""Scoring prompt-and-response sequences with reward models (§3.2.2)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kernels.attention import Documents
from stages.models.batches import by_token_budget
from stages.runtime.distributed import Rank

SCORING_TOKENS = 16_384
"""Tokens in one forward pass: enough to keep the cores busy, little enough for their caches."""


def score_sequences(
    reward_model: Callable[[Tensor, Documents], Tensor],
    sequences: Sequence[list[int]],
    rank: Rank,
    max_tokens: int = SCORING_TOKENS,
) -> Tensor:
    """Raw scores (N,) fp32 on the CPU of whole sequences, in order, on every rank.

    Ranks take every world_size-th sequence and run equally many forward passes (an empty one
    scores a single token), so a sharded model's collectives stay in step.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    mine = order[rank.index :: rank.world_size]
    batches = by_token_budget(mine, lambda i: len(sequences[i]), max_tokens)
    num_rounds = max(rank.gather_objects(len(batches)))
    scores: dict[int, float] = {}
    for round_index in range(num_rounds):
        batch = batches[round_index] if round_index < len(batches) else []
        values = _score_batch(reward_model, [sequences[i] for i in batch] or [[0]], rank)
        scores.update(zip(batch, values.tolist(), strict=False))
    merged = {i: s for shard in rank.gather_objects(scores) for i, s in shard.items()}
    return torch.tensor([merged[i] for i in range(len(sequences))], dtype=torch.float32)


@torch.no_grad()
def _score_batch(
    reward_model: Callable[[Tensor, Documents], Tensor], sequences: list[list[int]], rank: Rank
) -> Tensor:
    tokens = torch.tensor([t for s in sequences for t in s], dtype=torch.int64, device=rank.device)
    documents = Documents.of([len(s) for s in sequences], rank.device)
    return reward_model(tokens, documents).float().cpu()
