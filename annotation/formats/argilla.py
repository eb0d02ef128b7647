"""Argilla 2: the JSON that `dataset.records.to_json` writes and `from_json` reads.

Fields are the texts that an annotator sees, everything else stands in the metadata. Questions:
`pick` (a, b), `rating`, `safety_label` (label questions) and `edited_response` (text question).

Argilla knows people by UUID alone: each pseudonym has one of its own, the same in every file, and
the metadata says whose it is.
"""

import json
import uuid
from collections import defaultdict
from typing import Any

from annotation.formats.reading import from_json, from_json_list, read_record
from annotation.formats.records import Record, prompt_text

_FIELDS = ("response_a", "response_b")
_QUESTIONS = ("pick", "rating", "safety_label", "edited_response")
_PEOPLE = uuid.UUID("6f0c1a52-5a9b-4f0e-9d0e-2b6f3a7f4c11")
"""Name space of the UUIDs that stand for pseudonyms."""


def to_records(records: list[Record]) -> str:
    """A JSON list of Argilla records."""
    return json.dumps([_argilla(record) for record in records], ensure_ascii=False, indent=1)


def from_records(text: str) -> list[Record]:
    """The records of such a list; responses that were drafts or discarded are left out.

    Raises UserError.
    """
    return [
        read_record(f"record {number}", given, _record, ("metadata", "comparison_id"))
        for number, given in enumerate(from_json_list(text), start=1)
    ]


def _argilla(record: Record) -> dict[str, Any]:
    columns = record.comparison()
    fields = {"prompt": prompt_text(record), **{name: columns.pop(name) for name in _FIELDS}}
    columns["messages"] = json.dumps(columns["messages"], ensure_ascii=False)
    labels = [label.model_dump(mode="json") for label in record.labels]
    # metadata holds no nested values: names and times stand there as one JSON text
    columns["annotators"] = json.dumps(
        {_user_id(x): {"annotator": x["annotator"], "created_at": x["created_at"]} for x in labels}
    )
    return {
        "id": record.comparison_id,
        "status": "completed" if labels else "pending",
        "fields": fields,
        "metadata": {name: value for name, value in columns.items() if value is not None},
        "suggestions": {},
        "vectors": {},
        "responses": _responses(labels),
    }


def _responses(labels: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for label in labels:
        for question in _QUESTIONS:
            if label[question] is not None:
                answer = {"value": label[question], "user_id": _user_id(label)}
                found[question].append({**answer, "status": "submitted"})
    return dict(found)


def _user_id(label: dict[str, Any]) -> str:
    return str(uuid.uuid5(_PEOPLE, label["annotator"]))


def _record(given: dict[str, Any]) -> Record:
    columns = dict(given["metadata"])
    known = from_json(columns.pop("annotators", "{}"), "metadata.annotators")
    columns["messages"] = from_json(columns["messages"], "metadata.messages")
    columns |= {name: given["fields"][name] for name in _FIELDS}
    labels: dict[str, dict[str, Any]] = {}
    for question in _QUESTIONS:
        for answer in given.get("responses", {}).get(question, []):
            if answer.get("status", "submitted") == "submitted":
                labels.setdefault(str(answer["user_id"]), {})[question] = answer["value"]
    return Record.model_validate(
        {
            **columns,
            "labels": [
                label | known.get(user_id, {"annotator": user_id})
                for user_id, label in labels.items()
            ],
        }
    )
