"""Which prompts of the prompts table a stage works on, and in which order."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, NonNegativeInt

from data_contracts.errors import UserError
from data_contracts.ratings import Domain
from stages.models.batches import shuffled


def _any(counts: dict[Domain, int]) -> dict[Domain, int]:
    if not any(counts.values()):
        raise ValueError("give at least one domain a number above 0")
    return counts


PromptCounts = Annotated[dict[Domain, NonNegativeInt], AfterValidator(_any)]
"""How many prompts of each domain; none of a domain that is not named."""


def select_prompts(
    table: pa.Table, split: str, num_by_domain: Mapping[Domain, int], seed: int
) -> list[dict[str, Any]]:
    """A seeded choice of prompts of one split, without repetition, domain by domain.

    A domain with fewer prompts than asked for gives all it has. Raises UserError when the split
    holds no prompt of any of the domains.
    """
    rows: list[dict[str, Any]] = []
    for index, (domain, count) in enumerate(sorted(num_by_domain.items())):
        available = table.filter((pc.field("domain") == domain) & (pc.field("split") == split))
        order = shuffled(available.num_rows, seed, index)[:count]
        rows += available.take(pa.array(order)).to_pylist()
    if not rows:
        raise UserError(
            f"The prompts table has no {split} prompt for {', '.join(sorted(num_by_domain))}",
            "Ingest prompts of these domains, or set ingest's split fractions above 0",
        )
    return rows


@dataclass(frozen=True)
class Prompts:
    """Rows of the prompts table and their tokens."""

    rows: list[dict[str, Any]]
    tokens: list[list[int]]

    @property
    def domains(self) -> list[str]:
        """Each prompt's domain."""
        return [row["domain"] for row in self.rows]

    def batch(self, seed: int, iteration: int, size: int) -> "Prompts":
        """The iteration's prompts: all of them in one order, then all in another."""
        first, last = iteration * size, (iteration + 1) * size
        epochs = range(first // len(self.rows), (last - 1) // len(self.rows) + 1)
        order = np.concatenate([shuffled(len(self.rows), seed, epoch) for epoch in epochs])
        start = first - epochs[0] * len(self.rows)
        indices = order[start : start + size].tolist()
        return Prompts([self.rows[i] for i in indices], [self.tokens[i] for i in indices])
