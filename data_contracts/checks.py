"""Vectorised checks on a batch of rows. A mask is True where a row breaks the check.

Legend: N rows of a batch, E elements of all lists of a column. Masks are numpy bool (N,).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Mask = np.ndarray


@dataclass(frozen=True)
class Check:
    """One rule about one column."""

    column: str
    problem: str
    """What is wrong with the rows found, without their values."""
    remedy: str
    broken: Callable[[pa.RecordBatch], Mask]
    """Mask (N,) of the rows that break the rule; nulls never do (they have their own check)."""


def _compute(function: str, *arguments: Any, options: Any = None) -> Any:
    # By name: pyarrow makes `pc.equal` and its kin at import, where no type checker sees them.
    return pc.call_function(function, list(arguments), options=options)


def _mask(array: pa.Array) -> Mask:
    """Arrow booleans as numpy; null counts as False."""
    filled = array.fill_null(False) if array.null_count else array
    return filled.to_numpy(zero_copy_only=False)


def _is_one_of(array: pa.Array, values: Sequence[str]) -> Mask:
    options = pc.SetLookupOptions(pa.array(list(values), array.type), skip_nulls=False)
    return _mask(_compute("is_in", array, options=options))


def _lengths(lists: pa.Array) -> np.ndarray:
    """int64 (N,) number of elements of each row; 0 for null."""
    lengths = _compute("list_value_length", lists)
    filled = lengths.fill_null(0) if lengths.null_count else lengths
    return filled.to_numpy(zero_copy_only=False).astype(np.int64)


def _rows_of(lists: pa.Array, elements: Mask) -> Mask:
    """Rows (N,) that hold at least one marked element of (E,)."""
    rows = np.zeros(len(lists), dtype=bool)
    if elements.any():
        rows[np.repeat(np.arange(len(lists)), _lengths(lists))[elements]] = True
    return rows


# ---- nulls: derived from the schema for every column -----------------------------------------


def no_nulls(field: pa.Field) -> list[Check]:
    """The null checks of one column: the value itself, then everything nested in it."""
    remedy = f"Give every row a value for {field.name!r}"
    checks = []
    if not field.nullable:
        checks.append(
            Check(field.name, "is null", remedy, lambda batch: _null(batch.column(field.name)))
        )
    if pa.types.is_nested(field.type):
        problem = "holds a null inside (a message without content, or an empty list element)"
        checks.append(
            Check(field.name, problem, remedy, lambda batch: _nested_null(batch.column(field.name)))
        )
    return checks


def _null(array: pa.Array) -> Mask:
    return _mask(array.is_null()) if array.null_count else np.zeros(len(array), dtype=bool)


def _nested_null(array: pa.Array) -> Mask:
    """Rows whose list elements or struct fields, at any depth, are null."""
    rows = np.zeros(len(array), dtype=bool)
    if pa.types.is_list(array.type):
        elements = array.flatten()
        rows |= _rows_of(array, _null(elements) | _nested_null(elements))
    elif pa.types.is_struct(array.type):
        for index in range(array.type.num_fields):
            child = _compute("struct_field", array, options=pc.StructFieldOptions([index]))
            rows |= _null(child) | _nested_null(child)
    return rows


# ---- text ------------------------------------------------------------------------------------


def one_of(column: str, values: Sequence[str]) -> Check:
    """A closed vocabulary; null passes."""

    def broken(batch: pa.RecordBatch) -> Mask:
        array = batch.column(column)
        return ~_is_one_of(array, values) & ~_null(array)

    allowed = ", ".join(values)
    return Check(column, "is outside the vocabulary", f"Use one of: {allowed}", broken)


def not_blank(column: str) -> Check:
    """Text with at least one character that is not white space."""
    return Check(
        column,
        "is empty or only white space",
        f"Leave out the rows without {column!r} before writing the table",
        lambda batch: _blank(batch.column(column)),
    )


def _blank(array: pa.Array) -> Mask:
    empty = _compute("equal", _compute("binary_length", array), 0)
    return _mask(empty) | _mask(_compute("utf8_is_space", array))


def different(column: str, other: str) -> Check:
    """Two text columns that must not be equal."""
    return Check(
        column,
        f"equals {other!r}",
        "A pair of equal responses carries no preference: leave it out",
        lambda batch: _mask(_compute("equal", batch.column(column), batch.column(other))),
    )


# ---- numbers ---------------------------------------------------------------------------------


def finite(column: str) -> Check:
    """A float column, or a list of floats, without NaN and infinity; null passes."""

    def broken(batch: pa.RecordBatch) -> Mask:
        array = batch.column(column)
        if pa.types.is_list(array.type):
            return _rows_of(array, _not_finite(array.flatten()))
        return _not_finite(array)

    remedy = "Look for the overflow or the empty mean that produced it"
    return Check(column, "is NaN or infinite", remedy, broken)


def _not_finite(array: pa.Array) -> Mask:
    return ~_mask(_compute("is_finite", array)) & ~_null(array)


def between(column: str, low: float, high: float | None = None) -> Check:
    """A number, or a list of numbers, in [low, high]; null passes."""

    def outside(array: pa.Array) -> Mask:
        too_low = _mask(_compute("less", array, pa.scalar(low, array.type)))
        if high is None:
            return too_low
        return too_low | _mask(_compute("greater", array, pa.scalar(high, array.type)))

    def broken(batch: pa.RecordBatch) -> Mask:
        array = batch.column(column)
        if pa.types.is_list(array.type):
            return _rows_of(array, outside(array.flatten()))
        return outside(array)

    wanted = f"at least {low}" if high is None else f"from {low} to {high}"
    return Check(column, "is out of range", f"It must be {wanted}", broken)


def ordered(low: str, middle: str, high: str) -> Check:
    """An interval around its estimate: low <= middle <= high, but for rounding."""

    def broken(batch: pa.RecordBatch) -> Mask:
        lows, middles, highs = (
            batch.column(name).to_numpy(zero_copy_only=False) for name in (low, middle, high)
        )
        return (lows > middles + 1e-9) | (middles > highs + 1e-9)

    problem = f"lies outside its interval [{low}, {high}]"
    return Check(middle, problem, "Compute the interval from the same counts", broken)


def adds_up(total: str, parts: Sequence[str]) -> Check:
    """Counts that must sum to a total."""

    def broken(batch: pa.RecordBatch) -> Mask:
        counts = [batch.column(name).to_numpy(zero_copy_only=False) for name in (total, *parts)]
        return counts[0] != sum(counts[1:])

    names = " + ".join(parts)
    return Check(total, f"differs from {names}", "Count every prompt exactly once", broken)


# ---- lists -----------------------------------------------------------------------------------


def not_empty_list(column: str) -> Check:
    """A list of at least one element."""
    return Check(
        column,
        "is an empty list",
        f"Leave out the rows without {column!r}",
        lambda batch: (_lengths(batch.column(column)) == 0) & ~_null(batch.column(column)),
    )


def same_lengths(column: str, other: str) -> Check:
    """Two lists with one element for each other's."""
    return Check(
        column,
        f"has another length than {other!r}",
        "Both hold one value per token; write them from the same tokens",
        lambda batch: _lengths(batch.column(column)) != _lengths(batch.column(other)),
    )


# ---- dialogues -------------------------------------------------------------------------------


def dialogue(column: str, last_role: str) -> list[Check]:
    """A dialogue: an optional system message, then user and assistant in turns, to `last_role`."""
    remedy = "Merge successive messages of one role and drop incomplete dialogues when importing"
    return [
        not_empty_list(column),
        Check(
            column,
            "does not go: system (optional), user, assistant, user, …",
            remedy,
            lambda batch: _out_of_turn(batch.column(column)),
        ),
        Check(
            column,
            f"does not end with a message of the {last_role}",
            remedy,
            lambda batch: _last_is_not(batch.column(column), last_role),
        ),
        Check(
            column,
            "ends with an empty message",
            "Leave out dialogues whose last message says nothing",
            lambda batch: _last_is_blank(batch.column(column)),
        ),
    ]


def loss_on_answers(column: str) -> list[Check]:
    """Loss flags of a demonstration: on assistant messages only, and on one at least."""
    return [
        Check(
            column,
            "has loss on a message that is not the assistant's",
            "Set loss to false on system and user messages: only answers are trained on (§3.1)",
            _loss_elsewhere,
        ),
        Check(
            column,
            "has loss on no message",
            "Set loss to true on the answers to be learnt, or leave the dialogue out",
            lambda batch: (
                ~_rows_of(
                    batch.column(column), _mask(_messages_field(batch.column(column), "loss"))
                )
            ),
        ),
    ]


def _messages_field(messages: pa.Array, name: str) -> pa.Array:
    """(E,) one field of all messages of all rows."""
    return _compute("struct_field", messages.flatten(), options=pc.StructFieldOptions([name]))


def _out_of_turn(messages: pa.Array) -> Mask:
    lengths = _lengths(messages)
    starts = np.cumsum(lengths) - lengths
    roles = _messages_field(messages, "role")
    is_system = _mask(_compute("equal", roles, "system"))
    opens_with_system = np.zeros(len(lengths), dtype=bool)
    some = lengths > 0
    opens_with_system[some] = is_system[starts[some]]
    turn = np.arange(len(roles)) - np.repeat(starts + opens_with_system, lengths)
    is_user, is_assistant = (
        _mask(_compute("equal", roles, role)) for role in ("user", "assistant")
    )
    in_turn = np.where(turn < 0, is_system, np.where(turn % 2 == 0, is_user, is_assistant))
    return _rows_of(messages, ~in_turn)


def _last_messages(messages: pa.Array, field: str) -> tuple[np.ndarray, pa.Array]:
    """Indices (M,) of the rows that have messages, and (M,) that field of their last one."""
    lengths = _lengths(messages)
    rows = np.flatnonzero(lengths)
    last = pa.array(np.cumsum(lengths)[rows] - 1, pa.int64())
    return rows, _messages_field(messages, field).take(last)


def _last_is_not(messages: pa.Array, role: str) -> Mask:
    rows, roles = _last_messages(messages, "role")
    broken = np.zeros(len(messages), dtype=bool)
    broken[rows] = ~_mask(_compute("equal", roles, role))
    return broken


def _last_is_blank(messages: pa.Array) -> Mask:
    rows, contents = _last_messages(messages, "content")
    broken = np.zeros(len(messages), dtype=bool)
    broken[rows] = _blank(contents)
    return broken


def _loss_elsewhere(batch: pa.RecordBatch) -> Mask:
    messages = batch.column("messages")
    loss = _mask(_messages_field(messages, "loss"))
    is_assistant = _mask(_compute("equal", _messages_field(messages, "role"), "assistant"))
    return _rows_of(messages, loss & ~is_assistant)
