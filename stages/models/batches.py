"""From lists of token ids to flat batches, in equal numbers of micro-batches on every rank.

Legend: T tokens of a micro-batch, R rows with a loss.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from kernels.attention import Documents
from stages.runtime.distributed import Rank

Item = TypeVar("Item")


@dataclass(frozen=True)
class Example:
    """One document to learn from; `loss_mask` keeps the tokens that are trained on."""

    tokens: list[int]
    loss_mask: list[bool]
    id: str = ""
    """Of the row it was made from, to name it where training fails."""

    @property
    def num_loss_tokens(self) -> int:
        """Tokens that are predicted; the first token of a document never is."""
        return sum(self.loss_mask[1:])


@dataclass(frozen=True)
class LossBatch:
    """A flat micro-batch: row `rows[i]` must predict `targets[i]`."""

    tokens: Tensor
    documents: Documents
    rows: Tensor
    targets: Tensor


def collate(examples: Sequence[Example], device: torch.device) -> LossBatch:
    """Lay documents end to end; only the positions before a loss token reach the output layer.

    A document's last token predicts nothing and is not fed (a document needs two tokens).
    An empty list gives one document of one token and no loss: a rank that ran out of data
    still takes part in the collectives of the forward and backward pass (trap 20).
    """
    documents = examples or [Example([0, 0], [False, False])]
    inputs = np.concatenate([np.asarray(e.tokens[:-1], np.int64) for e in documents])
    labels = np.concatenate([np.asarray(e.tokens[1:], np.int64) for e in documents])
    keep = np.concatenate([np.asarray(e.loss_mask[1:], bool) for e in documents])
    rows = np.flatnonzero(keep)
    return LossBatch(
        tokens=torch.from_numpy(inputs).to(device),
        documents=Documents.of([len(e.tokens) - 1 for e in documents], device),
        rows=torch.from_numpy(rows).to(device),
        targets=torch.from_numpy(labels[rows]).to(device),
    )


def share_of_rank(items: Sequence[Item], rank: Rank, micro_batch_size: int) -> list[list[Item]]:
    """This rank's micro-batches of a global batch; every rank gets the same number of them.

    Items are dealt out in turn, so ranks differ by at most one item and the last micro-batches
    may be empty.
    """
    num_rounds = -(-len(items) // (rank.world_size * micro_batch_size))
    mine = list(items[rank.index :: rank.world_size])
    return [
        mine[i * micro_batch_size : (i + 1) * micro_batch_size] for i in range(max(num_rounds, 1))
    ]


def by_token_budget(
    items: Sequence[Item], num_tokens: Callable[[Item], int], budget: int
) -> list[list[Item]]:
    """Cut a list into consecutive runs of at most `budget` tokens (a longer item stands alone)."""
    runs: list[list[Item]] = []
    used = budget + 1
    for item in items:
        size = num_tokens(item)
        if used + size > budget:
            runs.append([])
            used = 0
        runs[-1].append(item)
        used += size
    return runs


def seed_from(*parts: object) -> int:
    """A 31-bit seed that depends on every part, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def shuffled(num_items: int, *seed: int) -> np.ndarray:
    """A permutation that depends on the seed's parts alone, so that a resume needs no state."""
    return np.random.default_rng(list(seed)).permutation(num_items)
