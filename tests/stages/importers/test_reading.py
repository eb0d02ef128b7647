import gzip
import json

import pytest

from data_contracts.errors import UserError
from stages.importers.reading import EmptyTextError, Record, read_documents, read_records

SECRET = "the offending text"


def write(tmp_path, content, name="rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def lines(*rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_gzip_is_known_by_content_not_by_name(tmp_path):
    rows = [{"text": "a"}, {"text": "b"}]
    zipped = write(tmp_path, gzip.compress(lines(*rows)), "plain.jsonl")
    plain = write(tmp_path, lines(*rows), "zipped.jsonl.gz")
    assert [r.fields for r in read_records(zipped)] == [r.fields for r in read_records(plain)]


def test_rows_are_numbered_by_line_and_array_elements_by_place(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf\n" + lines({"a": 1}) + b"\n  \n" + lines({"a": 2}))
    assert [record.row for record in read_records(path)] == ["line 2", "line 5"]
    array = write(tmp_path, json.dumps([{"a": 1}, {"a": 2}], indent=2).encode())
    assert [(r.row, r.fields["a"]) for r in read_records(array)] == [
        ("element 1", 1),
        ("element 2", 2),
    ]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (
            gzip.compress(lines({"text": SECRET}) * 99, mtime=0)[:-9],
            "after line .*gzip stream is cut off",
        ),
        (gzip.compress(lines({"text": SECRET}), mtime=0)[:20] + b"junk" * 9, "after line 0.*gzip"),
        (lines({"text": SECRET}) + b'{"text": "' + SECRET.encode(), "line 2, column .*not JSON"),
        (lines({"text": SECRET}, [SECRET]), "line 2: is a list where a JSON object is needed"),
        (b'[{"text": 1}, null]', "element 2: is null where a JSON object"),
        (b'[{"text": 1},\n "' + SECRET.encode(), "line 2, column 2: is not JSON"),
        (lines({"text": "x"}) + b'{"text": "\xff"}\n', "line 2, byte 11: is not UTF-8"),
        (lines({"text": "x"}) + b'{"text": "\0"}\n', "line 2: holds a NUL"),
        ("{}\n".encode("utf-16"), "is not UTF-8"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"n": ' + b"9" * 5000 + b"}", "line 1: is JSON that cannot be read"),
    ],
    # Compressed bytes make poor names, and names must be the same on every worker.
    ids=[
        "cut-off-gzip",
        "junk-in-gzip",
        "cut-off-row",
        "list-as-row",
        "null-element",
        "cut-off-array",
        "not-utf-8",
        "nul",
        "utf-16",
        "too-deep",
        "too-many-digits",
    ],
)
def test_broken_files_name_the_place_and_never_the_text(tmp_path, content, where):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=where) as caught:
        list(read_records(path))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is null where text"),
        (7, "is a number where text"),
        (["a"], "is a list where text"),
        ("a\0b", "NUL"),
        ("\ud83d", "surrogate"),
    ],
)
def test_text_fields_are_text(value, problem):
    with pytest.raises(UserError, match=f"line 3, field 'output': .*{problem}"):
        Record("f.jsonl", "line 3", {"output": value}).text("output")


def test_absent_and_empty_fields():
    record = Record("f.jsonl", "line 3", {"output": " \n"})
    with pytest.raises(UserError, match="field 'input': is missing"):
        record.text("input")
    with pytest.raises(EmptyTextError, match="field 'output': is empty"):
        record.text("output")
    assert record.optional_text("input") is record.optional_text("output") is None


def test_text_files_whole_or_by_paragraph(tmp_path):
    path = write(tmp_path, "\r\nfirst  line\n\tsecond\n \n\n\nthird é\n".encode(), "a.txt")
    assert [(r.row, r.fields["text"]) for r in read_documents(path, True)] == [
        ("line 2", "first  line\n\tsecond"),
        ("line 7", "third é"),
    ]
    (whole,) = read_documents(path, False)
    assert whole.fields["text"] == "first  line\n\tsecond\n \n\n\nthird é"
