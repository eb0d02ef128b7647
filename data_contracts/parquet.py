"""Parquet files under a contract: checked on the way in and out, written whole or not at all."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.durable import disk_error, replacing
from data_contracts.errors import ContractError, UserError
from data_contracts.tables import TableContract, contract_named
from data_contracts.validation import (
    METADATA_KEY,
    RowChecks,
    batch_from_dicts,
    check_columns,
    check_kind,
    conform,
    is_newer,
    stamped_schema,
)

_GROUP_ROWS = 65_536
_GROUP_BYTES = 128 * 2**20  # a row group is read as a whole, so long documents get fewer rows

Rows = pa.Table | Iterable[pa.RecordBatch] | list[dict]


def write_table(path: Path, rows: Rows, contract: TableContract) -> int:
    """Check rows and write them as one Parquet file; returns the number of rows.

    Rows are a table, batches (held one row group at a time), or dictionaries. The name `path`
    appears only when every row has passed and all bytes are on the disk.

    Raises:
        ContractError: a row, a column or a type breaks the contract.
        UserError: the file cannot be written.
    """
    path = Path(path)
    row_checks = RowChecks(contract)
    with replacing(path) as file:
        writer = pq.ParquetWriter(
            file, stamped_schema(contract), compression="zstd", write_page_checksum=True
        )
        with writer:
            for batch in _row_groups(_conforming(rows, contract, str(path))):
                if row_checks.add(batch):
                    writer.write_batch(batch, row_group_size=batch.num_rows)
            row_checks.raise_if_broken(str(path))
            row_checks.raise_if_repeated(str(path))
    return row_checks.num_rows


def read_table(path: Path, contract: TableContract) -> pa.Table:
    """All rows of a Parquet file, or of a folder's *.parquet in order of name, checked.

    Raises:
        ContractError: the file is under another contract, or a row breaks this one.
        UserError: the file is missing, unreadable or damaged.
    """
    row_checks = RowChecks(contract)
    batches = []
    for file in _files(Path(path)):
        check_kind(_schema(file), contract, str(file))
        for batch in _read(file, contract, _GROUP_ROWS):
            row_checks.add(batch)
            batches.append(batch)
    row_checks.raise_if_broken(str(path))
    row_checks.raise_if_repeated(str(path))
    return pa.Table.from_batches(batches, schema=stamped_schema(contract))


def iter_batches(
    path: Path, contract: TableContract, batch_size: int = _GROUP_ROWS
) -> Iterator[pa.RecordBatch]:
    """The rows of `read_table` in batches, one row group in memory at a time.

    A batch is checked before it is handed out, so a ContractError counts the rows so far; repeated
    ids are found at the end.
    """
    row_checks = RowChecks(contract)
    for file in _files(Path(path)):
        check_kind(_schema(file), contract, str(file))
        for batch in _read(file, contract, batch_size):
            row_checks.add(batch)
            row_checks.raise_if_broken(str(file))
            yield batch
    row_checks.raise_if_repeated(str(path))


def check_file(path: Path, contract_name: str) -> int:
    """Number of rows of a file or folder that satisfies a contract ("preferences").

    A file of any other program passes too when its columns and rows do; a file that names a
    contract must name this one.

    Raises:
        ContractError: it does not satisfy the contract.
        UserError: there is no such contract, or no readable file.
    """
    contract = contract_named(contract_name)
    row_checks = RowChecks(contract)
    for file in _files(Path(path)):
        schema = _schema(file)
        if METADATA_KEY in (schema.metadata or {}):
            check_kind(schema, contract, str(file))
        for batch in _read(file, contract, _GROUP_ROWS):
            row_checks.add(batch)
    row_checks.raise_if_broken(str(path))
    row_checks.raise_if_repeated(str(path))
    return row_checks.num_rows


# ---- reading ---------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise UserError(f"{path} holds no .parquet file", "Give the folder that holds the table")
    return files


def _schema(file: Path) -> pa.Schema:
    with _opened(file) as parquet:
        return parquet.schema_arrow


def _read(file: Path, contract: TableContract, batch_size: int) -> Iterator[pa.RecordBatch]:
    """Conforming batches of one file; a batch never spans two row groups."""
    with _opened(file) as parquet:
        schema = parquet.schema_arrow
        kind = (schema.metadata or {}).get(METADATA_KEY, b"").decode()
        check_columns(schema, contract, str(file), newer=is_newer(kind, contract))
        known = [name for name in schema.names if name in contract.schema.names]
        for group in range(parquet.num_row_groups):
            for batch in parquet.iter_batches(batch_size, row_groups=[group], columns=known):
                batch.validate(full=True)  # Parquet itself does not hold strings to UTF-8
                yield conform(batch, contract)


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    """An open Parquet file whose every damage becomes one paragraph naming it."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            yield parquet
    except UserError:
        raise
    except OSError as error:
        if error.errno:
            raise disk_error("read", file, error) from error
        raise _damaged(file) from error
    except (pa.ArrowException, UnicodeDecodeError):
        raise _damaged(file) from None  # Arrow's own messages may quote the data


def _damaged(file: Path) -> UserError:
    return UserError(
        f"{file} is not a whole Parquet file: it is damaged, cut short, or of another format",
        "Bring it back from a copy, or run the stage that wrote it again",
    )


# ---- writing ---------------------------------------------------------------------------------


def _conforming(rows: Any, contract: TableContract, file: str) -> Iterator[pa.RecordBatch]:
    if isinstance(rows, pa.Table):
        check_columns(rows.schema, contract, file)
        rows = rows.to_batches(max_chunksize=_GROUP_ROWS)
    elif isinstance(rows, list) and rows and isinstance(rows[0], dict):
        rows = _dict_batches(rows, contract, file)
    for batch in rows:
        if not isinstance(batch, pa.RecordBatch):
            raise TypeError(f"write_table takes record batches, not {type(batch).__name__}")
        check_columns(batch.schema, contract, file)
        try:
            batch.validate(full=True)
        except pa.ArrowException:
            raise _not_utf8(contract, batch, file) from None
        yield conform(batch, contract)


def _dict_batches(
    rows: Sequence[dict], contract: TableContract, file: str
) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(rows), _GROUP_ROWS):
        yield batch_from_dicts(rows[start : start + _GROUP_ROWS], contract, file)


def _not_utf8(contract: TableContract, batch: pa.RecordBatch, file: str) -> ContractError:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowException:
            remedy = "Decode the text with its true encoding before writing it"
            return ContractError(file, name, "holds bytes that are not UTF-8", 0, (), remedy)
    raise AssertionError("a batch is invalid only by one of its columns")


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of one row group each: small ones joined, large ones cut."""
    waiting: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for batch in batches:
        for piece in _pieces(batch):
            if num_rows + piece.num_rows > _GROUP_ROWS or num_bytes + piece.nbytes > _GROUP_BYTES:
                yield from _joined(waiting)
                waiting, num_rows, num_bytes = [], 0, 0
            waiting.append(piece)
            num_rows += piece.num_rows
            num_bytes += piece.nbytes
    yield from _joined(waiting)


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    num_pieces = max(-(-batch.num_rows // _GROUP_ROWS), -(-batch.nbytes // _GROUP_BYTES), 1)
    size = max(batch.num_rows // num_pieces, 1)
    for start in range(0, batch.num_rows, size):
        yield batch.slice(start, size)


def _joined(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    if batches:
        yield pa.concat_batches(batches) if len(batches) > 1 else batches[0]
