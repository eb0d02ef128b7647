"""Plain files: JSON lines (one comparison a line) and CSV (one label a row).

A text that a spreadsheet would take for a formula gets an apostrophe before it in the CSV, which
reading takes away again.
"""

import csv
import io
import json
import re
import sys
from typing import Any

from annotation.formats.records import Record

_LABEL_COLUMNS = (
    "annotator",
    "pick",
    "rating",
    "safety_label",
    "edited_response",
    "created_at",
)
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
_GUARDED = re.compile(r"'+[=+\-@\t\r\n＝＋－＠]")
_COLUMNS = tuple(name for name in Record.model_fields if name != "labels")


def to_jsonl(records: list[Record]) -> str:
    """One line for each record."""
    return "".join(record.model_dump_json() + "\n" for record in records)


def from_jsonl(text: str) -> list[Record]:
    """The records of JSON lines."""
    return [Record.model_validate_json(line) for line in text.split("\n") if line.strip()]


def to_csv(records: list[Record]) -> str:
    """One row for each label; a comparison without labels has one row, its label columns empty.

    Messages are JSON. An empty cell is an absent value.
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
    """The records of such a table, in the order of their first rows."""
    csv.field_size_limit(sys.maxsize)  # a response may be longer than its default
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO(text, newline="")):
        given = {name: _unguarded(value) for name, value in row.items() if value}
        comparison = {name: given[name] for name in _COLUMNS if name in given}
        comparison["messages"] = json.loads(comparison.get("messages", "[]"))
        record = found.setdefault(given["comparison_id"], {**comparison, "labels": []})
        if "annotator" in given:
            label = {name: given[name] for name in _LABEL_COLUMNS if name in given}
            record["labels"].append(label)
    return [Record.model_validate(record) for record in found.values()]


def _guarded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
        for name, value in row.items()
    }


def _unguarded(value: str) -> str:
    return value[1:] if _GUARDED.match(value) else value
