"""What comes in by file: once, on the texts that it was said of, or with an error that names it."""

import csv
import io
import json

import pytest
from annotation_world import START, browser, comparison, comparisons, publish_rows
from sqlalchemy import func, select

from annotation.batches import BatchPlan, items_named, progress, refuse_other_texts
from annotation.exchange import FORMATS, import_records, read_records, records
from annotation.formats.label_studio import CONFIG
from annotation.formats.records import Record
from annotation.storage.database import Database, open_database, sqlite_url
from annotation.storage.schema import Batch, Entry, User
from data_contracts.errors import UserError
from data_contracts.ratings import Rating

LABEL = {"annotator": "stranger", "pick": "a", "rating": "better", "created_at": START}


def record(name: str = "c", labels: tuple = (LABEL,), **changes: object) -> Record:
    return Record.model_validate(comparison(name, **changes) | {"labels": labels})


def come_in(database: Database, *given: Record, week: int = 1, name: str = "jsonl"):
    """Through a file of a format; (new items, new labels)."""
    read = read_records(FORMATS[name].write(list(given)), name, "file")
    with database.writing() as session:
        return import_records(session, week, read, BatchPlan(), START)


def out_of(database: Database, week: int = 1) -> list[Record]:
    with database.reading() as session:
        return records(session, week)


def count(database: Database, table: type) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


# ---- once --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_batch_comes_back_into_its_own_database_with_what_is_new_alone(name, service, app):
    publish_rows(service.database, comparisons(2))
    ann = browser(service, app, "ann")
    ann.label(ann.open(), edited_response="By hand")
    exported = out_of(service.database)
    assert come_in(service.database, *exported, name=name) == (0, 0)
    assert out_of(service.database) == exported

    labelled = [
        r if r.labels else r.model_copy(update={"labels": record().labels}) for r in exported
    ]
    assert come_in(service.database, *labelled, name=name) == (0, 1)  # by somebody, elsewhere
    assert come_in(service.database, *labelled, name=name) == (0, 0)
    with service.database.reading() as session:
        assert progress(session, 1).num_done == 2


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("change", [{"rating": "slightly_better"}, {"edited_response": "By hand"}])
def test_another_label_of_one_annotator_is_refused_and_nothing_of_its_file_kept(
    database, name, change
):
    come_in(database, record(), name=name)
    corrected = record(labels=(LABEL | change,))
    with pytest.raises(UserError, match="'stranger' has another label of comparison c here"):
        come_in(database, record("b"), corrected, name=name)
    assert [found.labels[0].rating for found in out_of(database)] == ["better"]
    assert count(database, Entry) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_labels_that_went_to_another_database_and_came_back_add_nothing(
    name, service, app, tmp_path
):
    publish_rows(service.database, [comparison("c")], overlap=2)
    for who in ("ann", "bob"):
        somebody = browser(service, app, who)
        somebody.label(somebody.open())
    at_home = out_of(service.database)
    other = open_database(sqlite_url(tmp_path / "other.db"))
    assert come_in(other, *at_home, name=name) == (1, 2)
    back = out_of(other)
    other.close()
    assert back == at_home  # pseudonyms, too
    assert come_in(service.database, *back, name=name) == (0, 0)
    assert count(service.database, User) == 2


def test_a_label_that_was_taken_back_stays_so_and_another_one_takes_its_place(service, app):
    publish_rows(service.database, [comparison("c")])
    ann = browser(service, app, "ann")
    ann.label(ann.open())
    (exported,) = out_of(service.database)
    ann.post("/undo", {"submission_id": "undo-0001"})
    assert come_in(service.database, exported) == (0, 0)
    (label,) = exported.labels
    later = label.model_copy(update={"rating": Rating.significantly_better})
    said_elsewhere = exported.model_copy(update={"labels": (later,)})
    assert come_in(service.database, said_elsewhere) == (0, 1)  # on the slot that ann holds
    with service.database.reading() as session:
        done = progress(session, 1)
    assert (done.num_done, done.num_held, done.num_wanted) == (1, 0, 1)


def test_an_imported_label_that_was_taken_back_stays_so_without_a_time(service, app):
    publish_rows(service.database, [comparison("c")])
    ann = browser(service, app, "ann")
    with service.database.reading() as session:
        pseudonym = session.scalars(select(User.pseudonym)).one()
    given = record(labels=({**LABEL, "annotator": pseudonym, "created_at": None},))
    assert come_in(service.database, given) == (0, 1)
    ann.post("/undo", {"submission_id": "undo-0001"})
    assert come_in(service.database, given) == (0, 0)
    assert out_of(service.database)[0].labels == ()


def test_a_file_comes_in_once_on_either_database(any_database):
    given = record(), record("d", labels=(LABEL, {**LABEL, "annotator": "a\0b"}))
    assert come_in(any_database, *given) == (2, 3)
    assert come_in(any_database, *given) == (0, 0)
    with pytest.raises(UserError, match="another label of comparison c"):
        come_in(any_database, record(labels=({**LABEL, "pick": "b"},)))


# ---- on the texts that it was said of ------------------------------------------------------------


@pytest.mark.parametrize("week", [1, 2])
def test_an_id_with_other_texts_does_not_come_in(database, week):
    publish_rows(database, [comparison("c")])
    other = record(response_a="Something else")
    with pytest.raises(UserError, match=r"Comparison c is in week 1 already"):
        come_in(database, record("b"), other, week=week)
    assert [found.comparison_id for found in out_of(database)] == ["c"]
    assert (count(database, Entry), count(database, Batch)) == (0, 1)


def test_a_weeks_file_does_not_come_in_as_another_week(database):
    """It would be a batch of nothing, which is ready at once."""
    come_in(database, record())
    with pytest.raises(UserError, match="Comparison c is in week 1 already"):
        come_in(database, record(), week=2)
    assert count(database, Batch) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"response_a": "Something else"},
        {"response_b": "Something else"},
        {"messages": [{"role": "user", "content": "Something else?"}]},
    ],
    ids=str,
)
def test_an_id_with_other_texts_is_refused(database, change):
    publish_rows(database, [comparison("c")])
    rows = [comparison("b"), comparison("c", **change)]
    with database.reading() as session:
        known = items_named(session, ["b", "c"])
    with pytest.raises(UserError, match="Comparison c is in week 1 already, with other texts"):
        refuse_other_texts(rows, known)


def test_texts_as_the_database_keeps_them_are_the_same(database):
    """It keeps no NUL."""
    row = comparison("c", response_a="One\0two")
    publish_rows(database, [row])
    with database.reading() as session:
        refuse_other_texts([row], items_named(session, ["c"]))


@pytest.mark.parametrize(
    "change",
    [{"response_b": "Something else"}, {"domain": "safety"}, {"temperature_a": 0.5}],
    ids=str,
)
def test_rows_of_one_comparison_that_disagree_about_it_do_not_come_in(change):
    again = record(labels=({**LABEL, "annotator": "another"},), **change)
    text = FORMATS["csv"].write([record(), again])
    name = next(iter(change))
    with pytest.raises(UserError, match=rf"file, row 3 \(comparison 'c'\): {name} differs"):
        read_records(text, "csv", "file")


# ---- or with an error that names it --------------------------------------------------------------


def as_json(name: str, *given: Record) -> list:
    return json.loads(FORMATS[name].write(list(given)))


def csv_text(*rows: dict) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def csv_rows(*given: Record) -> list[dict]:
    return list(csv.DictReader(io.StringIO(FORMATS["csv"].write(list(given)), newline="")))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"annotator": ""}, r"row 3 \(comparison 'd'\): check annotator"),
        ({"pick": ""}, r"row 3 \(comparison 'd'\): check pick"),
        ({"rating": "best"}, r"row 3 \(comparison 'd'\): check rating"),
        ({"model_a": ""}, r"row 3 \(comparison 'd'\): check model_a"),
        ({"messages": "[{"}, r"row 3 \(comparison 'd'\): messages"),
        ({"messages": ""}, r"row 3 \(comparison 'd'\): check messages"),
        ({"comparison_id": ""}, "row 3: check comparison_id"),
    ],
    ids=str,
)
def test_a_row_of_a_csv_is_named_with_its_field(change, problem):
    first, second = csv_rows(record(), record("d"))
    with pytest.raises(UserError, match=f"file, {problem}"):
        read_records(csv_text(first, second | change), "csv", "file")


@pytest.mark.parametrize(
    ("old", "new"), [("annotator", "Annotator"), ("annotator", "pick"), ("category", "notes")]
)
def test_a_column_that_would_get_lost_is_refused(old, new):
    head, rows = FORMATS["csv"].write([record()]).split("\r\n", 1)
    number = head.split(",").index(old) + 1
    text = f"{head.replace(old, new)}\r\n{rows}"
    place = max(number, head.split(",").index(new) + 1) if new in head.split(",") else number
    with pytest.raises(UserError, match=f"file, row 1, column {place}: "):
        read_records(text, "csv", "file")


@pytest.mark.parametrize(
    ("end", "problem"),
    [("x,y\r\n", "row 3 has 2 cells, the header has 18"), ('"x', "line 3: this is no CSV")],
)
def test_a_csv_that_was_cut_short_is_refused(end, problem):
    with pytest.raises(UserError, match=f"file, {problem}"):
        read_records(FORMATS["csv"].write([record()]) + end, "csv", "file")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"comparison_id": "d", ', "line 3: this is no JSON"),
        ("[" * 100_000, "line 3: this is no JSON"),
        ("[]", "line 3: check its fields"),
        ('{"comparison_id": "d"}', r"line 3 \(comparison 'd'\): check batch, domain, messages"),
    ],
    ids=["cut-off", "deep", "list", "fields"],
)
def test_a_json_line_is_named(line, problem):
    text = FORMATS["jsonl"].write([record()]) + "\n" + line
    with pytest.raises(UserError, match=f"file, {problem}"):
        read_records(text, "jsonl", "file")


MARKS = {
    "edited_response": "an edit",
    "annotator": "somebody",
    "created_at": "2026-03-02T09:00:00Z",
}


@pytest.mark.parametrize("name", ["jsonl", "label_studio", "argilla"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("edited_response", r"\ud800"),
        ("annotator", r"\ud800"),
        ("created_at", "0001-01-01T00:00:00+10:00"),
        ("created_at", "9999-12-31T23:59:59-10:00"),
    ],
    ids=["edit", "annotator", "early", "late"],
)
def test_what_no_database_keeps_is_named(name, field, value):
    text = FORMATS[name].write([record(labels=()), record("d", labels=(LABEL | MARKS,))])
    if name == "argilla" and field == "annotator":
        value = value.replace("\\", "\\\\")  # names stand in a JSON text within the JSON
    assert text.count(MARKS[field]) == 1
    text = text.replace(MARKS[field], value)
    with pytest.raises(
        UserError, match=rf"file, \w+ 2.* \(comparison 'd'\): check labels\.0\.{field}"
    ):
        read_records(text, name, "file")


def test_a_text_that_no_file_could_hold_is_named():
    text = FORMATS["jsonl"].write([record(response_a="MARK")]).replace("MARK", "\\ud800")
    with pytest.raises(UserError, match=r"line 1 \(comparison 'c'\): check response_a"):
        read_records(text, "jsonl", "file")


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("pick", {"selected": "middle"}, r"check labels\.0\.pick"),
        ("rating", {"choices": []}, "an annotation has no choice, or no rating"),
        ("rating", {"choices": ["better", "slightly_better"]}, "rating is not one choice alone"),
        ("edited_response", {"text": ["One", "Two"]}, "edited_response is not one text alone"),
        ("edited_response", {"text": "One"}, "edited_response is not one text alone"),
        ("edited_response", None, "built otherwise"),
    ],
    ids=str,
)
def test_an_annotation_of_label_studio_is_named(field, value, problem):
    edited = record("d", labels=({**LABEL, "edited_response": "By hand"},))
    tasks = as_json("label_studio", record(), edited)
    (result,) = [r for r in tasks[1]["annotations"][0]["result"] if r["from_name"] == field]
    result["value"] = value
    with pytest.raises(
        UserError, match=rf"file, task 2 of the list \(comparison 'd'\): .*{problem}"
    ):
        read_records(json.dumps(tasks), "label_studio", "file")


@pytest.mark.parametrize(
    ("field", "kind"), [("safety_label", "choices"), ("edited_response", "text")]
)
def test_what_was_emptied_in_label_studio_says_nothing(field, kind):
    said = {"edited_response": "By hand", "safety_label": "both_safe"}
    tasks = as_json("label_studio", record(labels=(LABEL | said,)))
    (result,) = [r for r in tasks[0]["annotations"][0]["result"] if r["from_name"] == field]
    result["value"] = {kind: []}
    (found,) = read_records(json.dumps(tasks), "label_studio", "file")
    assert getattr(found.labels[0], field) is None


def test_label_studios_text_field_takes_one_text():
    assert 'maxSubmissions="1"' in CONFIG


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"messages": "[{"}, "metadata.messages: this is no JSON"),
        ({"annotators": "[]"}, "built otherwise"),
    ],
)
def test_a_record_of_argilla_is_named(change, problem):
    given = as_json("argilla", record(), record("d"))
    given[1]["metadata"] |= change
    with pytest.raises(UserError, match=rf"file, record 2 \(comparison 'd'\): .*{problem}"):
        read_records(json.dumps(given), "argilla", "file")


@pytest.mark.parametrize("name", ["label_studio", "argilla"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{}", "", "3"], ids=["deep", "object", "empty", "3"]
)
def test_a_file_that_is_no_list_is_refused(name, text):
    with pytest.raises(UserError, match="file, the whole of it: this is no JSON"):
        read_records(text, name, "file")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("jsonl", ""),
        ("jsonl", "\n\n"),
        ("csv", ""),
        ("csv", FORMATS["csv"].write([])),
        ("argilla", "[]"),
    ],
)
def test_a_file_of_nothing_is_refused(name, text):
    """It would be a batch of nothing, which is ready at once."""
    with pytest.raises(UserError, match="file holds no comparison"):
        read_records(text, name, "file")


def test_an_id_that_is_really_a_text_is_not_quoted_as_a_whole():
    text = json.dumps({"comparison_id": "words " * 100})
    with pytest.raises(UserError) as caught:
        read_records(text, "jsonl", "file")
    assert len(str(caught.value)) < 300
