"""What may become a batch: comparisons that keep the contract and that a person can judge.

Apart from `batches`, which the page serves from: the contracts bring pyarrow with them, and the
page comes back sooner without.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from annotation.storage.schema import MAX_ID_LENGTH
from data_contracts.errors import UserError
from data_contracts.tables import COMPARISONS
from data_contracts.validation import RowChecks, batch_from_dicts


def check_comparable(rows: Sequence[Mapping[str, Any]], origin: str = "The batch") -> None:
    """Raise UserError for rows that break the contract, that the database cannot name, or whose
    two responses an annotator could not tell apart."""
    if rows:
        checks = RowChecks(COMPARISONS)
        checks.add(batch_from_dicts(rows, COMPARISONS, origin))
        checks.raise_if_broken(origin)
        checks.raise_if_repeated(origin)
    for row in rows:
        for name in ("comparison_id", "prompt_id"):
            if len(row[name]) > MAX_ID_LENGTH or "\0" in row[name]:
                raise UserError(
                    f"{origin}: a {name} has more than {MAX_ID_LENGTH} characters, or a NUL",
                    "Give shorter ids, for instance a hash of them",
                )
        a, b = row["response_a"].strip(), row["response_b"].strip()
        if not a or not b or a == b:
            raise UserError(
                f"Comparison {row['comparison_id']} has an empty response, or the same one twice",
                "Leave it out of the batch",
            )
