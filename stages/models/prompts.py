"""Which prompts of the prompts table a stage works on."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_contracts.errors import UserError
from stages.models.batches import shuffled


def select_prompts(
    table: pa.Table, split: str, num_by_domain: dict[str, int], seed: int
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
