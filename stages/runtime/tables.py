"""Tables as stage outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_contracts.parquet import write_table
from data_contracts.tables import CONTRACTS
from stages.runtime.stage import WorkDir


def table_output(
    work: WorkDir, role: str, contract: str, rows: Sequence[dict[str, Any]] | pa.Table
) -> tuple[Path, str]:
    """Write a table under its contract as output `role`; every rank calls, rank 0 writes."""
    folder = work.output(role)
    if work.rank.is_main:
        table = rows if isinstance(rows, pa.Table) else list(rows)
        write_table(folder / f"{role}.parquet", table, CONTRACTS[contract])
    return folder, CONTRACTS[contract].kind
