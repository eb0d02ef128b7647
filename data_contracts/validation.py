"""Holding a table to its contract: the version, the columns, then every row, batch by batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_contracts.checks import Check, Mask
from data_contracts.errors import ContractError
from data_contracts.tables import TableContract

METADATA_KEY = b"contract"
"""Where a file's schema metadata holds its kind, for instance b"preferences/1.0"."""

_NUM_NAMED_ROWS = 3


def stamped_schema(contract: TableContract) -> pa.Schema:
    """The schema with the contract's name and version in its metadata."""
    return contract.schema.with_metadata({METADATA_KEY: contract.kind.encode()})


# ---- version and columns ---------------------------------------------------------------------


def check_kind(schema: pa.Schema, contract: TableContract, file: str) -> str:
    """Kind written in a file's metadata, when this contract can read it.

    Raises:
        ContractError: no contract, another contract, or another major version.
    """
    kind = (schema.metadata or {}).get(METADATA_KEY, b"").decode("utf-8", "replace")
    if not kind:
        raise _file_error(
            file, "names no table contract", "Bring the file in with `rlhf ingest` first"
        )
    name, _, version = kind.partition("/")
    if name != contract.name:
        raise _file_error(
            file,
            f"holds {name}, not {contract.name}",
            f"Give a {contract.name} table here",
        )
    if version.partition(".")[0] != contract.version.partition(".")[0]:
        raise _file_error(
            file,
            f"is {kind}, and this program reads {contract.kind}",
            "Major versions do not mix: write the table again with this program",
        )
    return kind


def check_columns(
    schema: pa.Schema, contract: TableContract, file: str, *, newer: bool = False
) -> None:
    """Refuse missing columns, foreign columns and other types.

    A nullable column may be missing. A newer minor version may have columns we do not know.
    """
    for field in contract.schema:
        if field.name not in schema.names:
            if field.nullable:
                continue
            raise _column_error(
                file, field.name, "is missing", f"Write it as {field.type}, for every row"
            )
        actual = schema.field(field.name).type
        nothing_in_it = pa.types.is_null(actual) and field.nullable
        if not nothing_in_it and not _same_type(actual, field.type):
            raise _column_error(
                file, field.name, f"has type {actual}", f"Convert it to {field.type}"
            )
    known = set(contract.schema.names)
    foreign = [] if newer else [name for name in schema.names if name not in known]
    if foreign:
        raise _column_error(
            file,
            foreign[0],
            f"is no part of {contract.kind}",
            f"Leave it out; the columns are {', '.join(contract.schema.names)}",
        )


def is_newer(kind: str, contract: TableContract) -> bool:
    """Whether a readable file was written under a later minor version."""
    return _minor(kind) > _minor(contract.version)


def conform(batch: pa.RecordBatch, contract: TableContract) -> pa.RecordBatch:
    """The batch in the contract's column order and exact types; missing columns become null."""
    arrays = [_column(batch, field) for field in contract.schema]
    return pa.RecordBatch.from_arrays(arrays, schema=stamped_schema(contract))


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    if field.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    array = batch.column(field.name)
    return array if array.type == field.type else array.cast(field.type)


def _same_type(actual: pa.DataType, wanted: pa.DataType) -> bool:
    """Equal but for how Arrow lays it out: other tools write large or dictionary strings."""
    if pa.types.is_dictionary(actual):
        actual = actual.value_type
    if pa.types.is_string(wanted):
        return any(
            is_kind(actual)
            for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        )
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(actual) or pa.types.is_large_list(actual)
        return is_list and _same_type(actual.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        return (
            pa.types.is_struct(actual)
            and [field.name for field in actual] == [field.name for field in wanted]
            and all(_same_type(a.type, w.type) for a, w in zip(actual, wanted, strict=True))
        )
    return actual == wanted


def _minor(version: str) -> int:
    minor = version.rpartition(".")[2]
    return int(minor) if minor.isdigit() else 0


# ---- rows ------------------------------------------------------------------------------------


class RowChecks:
    """The checks of one contract over all batches of one table, whose ids must be unique."""

    def __init__(self, contract: TableContract) -> None:
        self._contract = contract
        self._ids: list[pa.Array] = []
        self._counts: dict[Check, int] = {}
        self._examples: dict[Check, list[str]] = {}
        self.num_rows = 0

    def add(self, batch: pa.RecordBatch) -> bool:
        """Check a conforming batch; False once any row so far has failed."""
        for check in self._contract.checks:
            broken = check.broken(batch)
            count = int(broken.sum())
            if count:
                self._note(check, count, broken, batch)
        self._ids.append(batch.column(self._contract.row_id))
        self.num_rows += batch.num_rows
        return not self._counts

    def raise_if_broken(self, file: str) -> None:
        """Raise ContractError for the first check of the contract that some row failed."""
        for check in self._contract.checks:
            if check in self._counts:
                raise ContractError(
                    file,
                    check.column,
                    check.problem,
                    self._counts[check],
                    self._examples[check],
                    check.remedy,
                )

    def raise_if_repeated(self, file: str) -> None:
        """Raise ContractError when one row id occurs twice anywhere in the table."""
        ids = pa.chunked_array(self._ids, pa.string())
        counted = pc.call_function("value_counts", [ids])
        repeated = counted.filter(
            pc.call_function("greater", [counted.field("counts"), pa.scalar(1, pa.int64())])
        )
        if len(repeated):
            raise ContractError(
                file,
                self._contract.row_id,
                "repeats an id",
                sum(repeated.field("counts").to_pylist()),
                repeated.field("values")[:_NUM_NAMED_ROWS].to_pylist(),
                "Drop the repeated rows, or give each an id of its own",
            )

    def _note(self, check: Check, count: int, broken: Mask, batch: pa.RecordBatch) -> None:
        self._counts[check] = self._counts.get(check, 0) + count
        examples = self._examples.setdefault(check, [])
        ids = batch.column(self._contract.row_id)
        for index in broken.nonzero()[0][: _NUM_NAMED_ROWS - len(examples)]:
            examples.append(ids[int(index)].as_py() or f"row {self.num_rows + int(index) + 1}")


# ---- rows as dictionaries --------------------------------------------------------------------


def batch_from_dicts(
    rows: Sequence[Mapping[str, Any]], contract: TableContract, file: str
) -> pa.RecordBatch:
    """Rows as one batch; a missing key is a null.

    Raises:
        ContractError: a key that is no column, or a value that is not of its column's type.
    """
    known = set(contract.schema.names)
    foreign = {key for row in rows for key in row if key not in known}
    if foreign:
        raise _column_error(
            file,
            min(foreign),
            f"is no part of {contract.kind}",
            f"Leave it out; the columns are {', '.join(contract.schema.names)}",
        )
    arrays = [_array_from(rows, field, contract, file) for field in contract.schema]
    return pa.RecordBatch.from_arrays(arrays, schema=contract.schema)


def _array_from(
    rows: Sequence[Mapping[str, Any]], field: pa.Field, contract: TableContract, file: str
) -> pa.Array:
    values = [row.get(field.name) for row in rows]
    array = _array_or_none(values, field.type)
    if array is not None:
        return array
    misfits = [
        index for index, value in enumerate(values) if _array_or_none([value], field.type) is None
    ]
    named = [
        str(rows[index].get(contract.row_id) or f"row {index + 1}")
        for index in misfits[:_NUM_NAMED_ROWS]
    ]
    problem = f"is not of type {field.type}"
    remedy = f"Convert it to {field.type}"
    raise ContractError(file, field.name, problem, len(misfits), named, remedy)


def _array_or_none(values: list[Any], kind: pa.DataType) -> pa.Array | None:
    try:
        return pa.array(values, kind)
    except (ValueError, TypeError, OverflowError):  # the messages quote the value: dropped here
        return None


def _file_error(file: str, problem: str, remedy: str) -> ContractError:
    return ContractError(file, "", problem, 0, (), remedy)


def _column_error(file: str, column: str, problem: str, remedy: str) -> ContractError:
    return ContractError(file, column, problem, 0, (), remedy)
