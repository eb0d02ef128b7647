"""From bytes to records: gzip by content, UTF-8, JSON lines or one JSON array.

Whatever is wrong with a file ends in one UserError that names file, row and field, and never
quotes the text: prompts are private and errors end up in logs.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from data_contracts.errors import UserError
from stages.importers.rows import Message

ROLES = ("system", "user", "assistant")
_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CORRECT_ROW = "Correct or remove the row, or name the format that the file really has"


class EmptyTextError(UserError):
    """A row without text where its format needs some; `skip_empty` counts it instead."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file, and the only way importers read its fields."""

    file: str
    row: str
    """Where it is, as "line 12"."""
    fields: dict[str, Any]

    def error(self, field: str, problem: str, remedy: str = _CORRECT_ROW) -> UserError:
        """What is wrong with a field of this row."""
        return UserError(f"{self.file}, {self.row}, field {field!r}: {problem}", remedy)

    def text(self, field: str) -> str:
        """A text that says something; raises EmptyTextError or UserError."""
        if field not in self.fields:
            raise self.error(field, "is missing")
        return self.checked(self.fields[field], field)

    def optional_text(self, field: str) -> str | None:
        """A text, or None where it is absent, null or blank."""
        value = self.fields.get(field)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        return self.checked(value, field)

    def choice(self, field: str, choices: tuple[str, ...]) -> str | None:
        """One of a closed set of words, or None where it is absent or null."""
        value = self.fields.get(field)
        if value is not None and value not in choices:
            remedy = f"Use one of {', '.join(choices)}, or leave the field out"
            raise self.error(field, "is not one of the known values", remedy)
        return value

    def messages(self, field: str, last_role: Literal["user", "assistant"]) -> list[Message]:
        """A dialogue in order that ends with `last_role`."""
        if field not in self.fields:
            raise self.error(field, "is missing")
        messages = self.message_list(self.fields[field], field)
        if not in_order(messages):
            remedy = (
                "Write an optional system message, then user and assistant in turn; merge "
                "successive messages of one role"
            )
            raise self.error(field, "its roles are not in turn", remedy)
        if messages[-1]["role"] != last_role:
            raise self.error(field, f"does not end with a message of the {last_role}")
        return messages

    def message_list(self, value: Any, field: str) -> list[Message]:
        """Role and content of each message, whatever their order."""
        if not isinstance(value, list) or not value:
            raise self.error(field, "is not a list of messages")
        return [self._message(item, f"{field}[{i}]") for i, item in enumerate(value)]

    def checked(self, value: Any, field: str) -> str:
        """`value` as text that a table can hold."""
        if not isinstance(value, str):
            raise self.error(field, f"is {_json_type(value)} where text is needed")
        if not value.strip():
            raise EmptyTextError(
                f"{self.file}, {self.row}, field {field!r}: is empty",
                "Write the text, remove the row, or set skip_empty on this source to count such "
                "rows and leave them out",
            )
        if "\0" in value:
            raise self.error(field, "holds a NUL character", "Remove the NUL characters")
        if not value.isascii():
            self._check_encodable(value, field)
        return value

    def _check_encodable(self, value: str, field: str) -> None:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            problem = "holds half of a surrogate pair, which is no character"
            raise self.error(field, problem, "Write the file again in UTF-8") from error

    def _message(self, item: Any, field: str) -> Message:
        if not isinstance(item, dict):
            raise self.error(field, f"is {_json_type(item)} where a message is needed")
        role = item.get("role")
        if role not in ROLES:
            raise self.error(f"{field}.role", f"is not one of {', '.join(ROLES)}")
        if "content" not in item:
            raise self.error(f"{field}.content", "is missing")
        return {"role": role, "content": self.checked(item["content"], f"{field}.content")}


def in_order(messages: list[Message]) -> bool:
    """Whether roles run: an optional system message, then user and assistant in turn."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    return bool(turns) and turns == (["user", "assistant"] * len(turns))[: len(turns)]


def read_records(path: Path) -> Iterator[Record]:
    """Rows of a file of JSON lines, or of one JSON array of objects; blank lines are skipped."""
    lines = read_lines(path)
    is_first = True
    for number, line in lines:
        if not line.strip():
            continue
        if is_first and line.lstrip().startswith("["):
            before = "\n" * (number - 1)  # so that JSON errors count lines as the file does
            yield from _array_records(path, before + line + "".join(rest for _, rest in lines))
            return
        is_first = False
        row = f"line {number}"
        yield _record(path, row, _parsed(path, row, line))


def read_documents(path: Path, split_at_blank_lines: bool) -> Iterator[Record]:
    """A plain text file as records with the field "text": the whole, or its paragraphs."""
    first, lines = 1, []
    for number, line in read_lines(path):
        if split_at_blank_lines and not line.strip():
            yield from _document(path, first, lines)
            lines = []
            continue
        first = first if lines else number
        lines.append(line)
    yield from _document(path, first, lines)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line with its ending."""
    number = 0
    with path.open("rb") as raw:
        try:
            for line in _unzipped(raw):
                number += 1
                if number == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                yield number, _decoded(path, number, line)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{path}, after line {number}: the gzip stream is cut off or damaged",
                "Copy or download the file again",
            ) from error


def _unzipped(raw: IO[bytes]) -> Iterable[bytes]:
    magic = raw.read(len(_GZIP_MAGIC))
    raw.seek(0)
    return gzip.open(raw) if magic == _GZIP_MAGIC else raw


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}, byte {error.start + 1}: is not UTF-8",
            "Convert the file to UTF-8 (for instance with iconv)",
        ) from error
    if "\0" in text:
        raise UserError(
            f"{path}, line {number}: holds a NUL character",
            "Remove the NUL characters; a file in UTF-16 must be converted to UTF-8",
        )
    return text


def _document(path: Path, first: int, lines: list[str]) -> Iterator[Record]:
    text = "".join(lines).strip("\r\n")
    if text.strip():
        yield Record(str(path), f"line {first}", {"text": text})


def _array_records(path: Path, text: str) -> Iterator[Record]:
    for index, item in enumerate(_parsed(path, "", text)):
        yield _record(path, f"element {index + 1}", item)


def _parsed(path: Path, row: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = row or f"line {error.lineno}"
        problem = f"{path}, {where}, column {error.colno}: is not JSON ({error.msg})"
    except (ValueError, RecursionError):
        problem = f"{path}, {row or 'the array'}: is JSON that cannot be read (too deep or large)"
    raise UserError(problem, "Write one JSON object per line, or one JSON array of objects")


def _record(path: Path, row: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise UserError(
            f"{path}, {row}: is {_json_type(value)} where a JSON object is needed",
            "Write one JSON object per line, or one JSON array of objects",
        )
    return Record(str(path), row, value)


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
