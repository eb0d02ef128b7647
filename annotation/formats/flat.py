"""Plain files: JSON lines (one comparison a line) and CSV (one label a row).

A text that a spreadsheet would take for a formula gets an apostrophe before it in the CSV, which
reading takes away again. So does an empty text, for an empty cell is no value at all.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from annotation.formats.reading import REMEDY, from_json, read_record
from annotation.formats.records import Record, RecordedLabel
from data_contracts.errors import UserError

_LABEL_COLUMNS = (
    "annotator",
    "pick",
    "rating",
    "safety_label",
    "edited_response",
    "created_at",
)
_NEEDS_GUARD = re.compile(r"'*([=+\-@\t\r\n＝＋－＠]|\Z)")
_GUARDED = re.compile(r"'+([=+\-@\t\r\n＝＋－＠]|\Z)")
_COLUMNS = tuple(name for name in Record.model_fields if name != "labels")


def to_jsonl(records: list[Record]) -> str:
    """One line for each record."""
    return "".join(record.model_dump_json() + "\n" for record in records)


def from_jsonl(text: str) -> list[Record]:
    """The records of JSON lines; raises UserError."""
    lines = enumerate(text.split("\n"), start=1)
    return [_from_line(f"line {number}", line) for number, line in lines if line.strip()]


def _from_line(place: str, line: str) -> Record:
    return read_record(place, from_json(line, place), Record.model_validate, ("comparison_id",))


def to_csv(records: list[Record]) -> str:
    """One row for each label; a comparison without labels has one row, its label columns empty.

    Messages are JSON. An empty cell is an absent value, an apostrophe alone an empty text.
    """
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, [*_COLUMNS, *_LABEL_COLUMNS])
    writer.writeheader()
    for record in records:
        fields = record.comparison()
        fields["messages"] = json.dumps(fields["messages"], ensure_ascii=False)
        labels = [label.model_dump(mode="json") for label in record.labels] or [{}]
        writer.writerows(_guarded({**fields, **label}) for label in labels)
    return out.getvalue()


def from_csv(text: str) -> list[Record]:
    """The records of such a table, in the order of their first rows.

    Raises UserError, also for a column that is none of ours (its cells would get lost) and for rows
    of one comparison that disagree about it.
    """
    csv.field_size_limit(sys.maxsize)  # a response may be longer than its default
    found: dict[str, Record] = {}
    for number, row in _rows(text):
        place = f"row {number}"
        record = read_record(place, row, _from_row, ("comparison_id",))
        first = found.get(record.comparison_id)
        found[record.comparison_id] = record if first is None else _joined(first, record, place)
    return list(found.values())


def _rows(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row's number, the header's being 1, and its cells that are not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    try:
        for number, cells in enumerate(reader, start=1):
            if not header:
                header = cells
                _check_header(header)
            elif cells:
                if len(cells) != len(header):
                    problem = f"row {number} has {len(cells)} cells, the header has {len(header)}"
                    raise UserError(problem, REMEDY)
                given = zip(header, cells, strict=True)
                yield number, {name: _unguarded(cell) for name, cell in given if cell}
    except csv.Error:
        problem = f"line {reader.line_num}: this is no CSV that can be read"
        raise UserError(problem, REMEDY) from None


def _check_header(header: list[str]) -> None:
    known = (*_COLUMNS, *_LABEL_COLUMNS)
    for number, name in enumerate(header, start=1):
        if name not in known or name in header[: number - 1]:
            raise UserError(  # not quoted: a file without a header has its first texts here
                f"row 1, column {number}: this names none of our columns, or one again",
                f"Name columns as `export` does, and take others out: {', '.join(known)}",
            )


def _from_row(row: dict[str, str]) -> Record:
    comparison: dict[str, Any] = {name: row[name] for name in _COLUMNS if name in row}
    if "messages" in comparison:
        comparison["messages"] = from_json(comparison["messages"], "messages")
    label = {name: row[name] for name in _LABEL_COLUMNS if name in row}
    labels = [RecordedLabel.model_validate(label)] if label else []
    return Record.model_validate({**comparison, "labels": labels})


def _joined(first: Record, other: Record, place: str) -> Record:
    """A comparison with the labels of one more row; raises UserError where that is about another
    comparison."""
    columns = other.comparison()
    differing = [name for name, value in first.comparison().items() if value != columns[name]]
    if differing:
        raise UserError(
            f"{place} (comparison {first.comparison_id!r}): {', '.join(differing)} differs from "
            "the first row of that comparison",
            "Give each comparison an id of its own, or correct the row",
        )
    return first.model_copy(update={"labels": first.labels + other.labels})


def _guarded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: f"'{value}" if isinstance(value, str) and _NEEDS_GUARD.match(value) else value
        for name, value in row.items()
    }


def _unguarded(value: str) -> str:
    return value[1:] if _GUARDED.match(value) else value
