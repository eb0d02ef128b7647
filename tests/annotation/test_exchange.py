"""Round trips through other tools' files lose nothing."""

import csv
import io
import json
import uuid
from datetime import UTC, datetime

import pytest
from annotation_world import START, Browser, browser, comparison, comparisons, publish_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from annotation.batches import BatchPlan
from annotation.exchange import FORMATS, import_records, read_records, records
from annotation.formats.label_studio import CONFIG
from annotation.formats.records import Record
from annotation.storage.database import open_database, sqlite_url
from annotation.storage.schema import User
from data_contracts.errors import UserError
from data_contracts.ratings import Rating, SafetyLabel

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
NAMES = st.sampled_from(["annotator-1", "annotator-2", "annotator-3"])
TIMES = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
LABEL = st.fixed_dictionaries(
    {
        "annotator": NAMES,
        "pick": st.sampled_from("ab"),
        "rating": st.sampled_from(Rating),
        "safety_label": st.none() | st.sampled_from(SafetyLabel),
        "edited_response": st.none() | TEXT,
        "created_at": st.none() | TIMES,
    }
)
RECORD = st.builds(
    lambda name, messages, texts, category, models, domain, temperature, labels: (
        Record.model_validate(
            {
                "comparison_id": name,
                "prompt_id": f"prompt {name}",
                "domain": domain,
                "batch": 3,
                "category": category,
                "messages": messages,
                "response_a": texts[0],
                "response_b": texts[1],
                "model_a": models[0],
                "model_b": models[1],
                "temperature_a": temperature,
                "temperature_b": 1.0,
                "labels": labels,
            }
        )
    ),
    name=TEXT,
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT}
        ),
        min_size=1,
        max_size=4,
    ),
    texts=st.tuples(TEXT, TEXT),
    category=st.none() | TEXT,
    models=st.tuples(TEXT, TEXT),
    domain=st.sampled_from(["helpfulness", "safety"]),
    temperature=st.floats(0, 2),
    labels=st.lists(LABEL, max_size=3, unique_by=lambda label: label["annotator"]),
)
RECORDS = st.lists(RECORD, min_size=1, max_size=4, unique_by=lambda record: record.comparison_id)


@pytest.mark.parametrize("name", FORMATS)
@given(given_records=RECORDS)
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_again_exactly(name, given_records):
    text = FORMATS[name].write(given_records)
    assert read_records(text, name, "file") == given_records


@pytest.mark.parametrize("name", FORMATS)
def test_a_batch_moves_to_another_database_with_all_its_labels(name, service, app, tmp_path, clock):
    texts = {"response_a": 'First,\nwith "quotes"; and ünïcode', "response_b": "second\r\nline"}
    publish_rows(service.database, [comparison("c", **texts), *comparisons(3, "safety")], overlap=2)
    for who in ("ann", "bob"):
        somebody = browser(service, app, who)
        somebody.label(somebody.open(), "right-better", edited_response="By hand")
        for _ in range(2):
            page = somebody.open("safety")
            somebody.label(page, left_safety="safe", right_safety="safe")
    with service.database.reading() as session:
        before = records(session, 1)
    assert sum(len(record.labels) for record in before) == 6

    other = open_database(sqlite_url(tmp_path / "other.db"))
    text = FORMATS[name].write(before)
    for _ in range(2):  # the second time adds nothing
        with other.writing() as session:
            counts = import_records(
                session, 1, read_records(text, name, "file"), BatchPlan(overlap=2), START
            )
    assert counts == (0, 0)
    with other.reading() as session:
        after = records(session, 1)
    other.close()
    assert by_id(after) == by_id(before)


def by_id(given_records: list[Record]) -> dict[str, Record]:
    """The order of a batch is drawn anew in another database."""
    return {record.comparison_id: record for record in given_records}


def test_an_imported_annotator_cannot_log_in(service, app):
    record = records_of_one_label()
    with service.database.writing() as session:
        import_records(session, 1, [record], BatchPlan(), START)
        (user,) = session.scalars(select(User)).all()
        user.is_active = True  # an admin's mistake
    assert Browser(app, user.username).log_in("!").status_code == 422
    with service.database.reading() as session:
        (found,) = records(session, 1)
    assert found.labels[0].annotator != "stranger@example.org"


def records_of_one_label() -> Record:
    label = {
        "annotator": "stranger@example.org",
        "pick": "b",
        "rating": "better",
        "created_at": START,
    }
    return Record.model_validate({**comparison("c"), "labels": [label]})


def test_label_studio_gets_the_parts_of_its_pairwise_template():
    (task,) = json.loads(FORMATS["label_studio"].write([records_of_one_label()]))
    (annotation,) = task["annotations"]
    assert annotation["result"][0] == {
        "from_name": "pick",
        "to_name": "text1,text2",
        "type": "pairwise",
        "value": {"selected": "right"},
        "meta": {"annotator": "stranger@example.org", "created_at": "2026-03-02T09:00:00Z"},
    }
    assert '<Pairwise name="pick" toName="text1,text2"/>' in CONFIG
    for name in ("prompt", "text1", "text2"):
        assert f'value="${name}"' in CONFIG
        assert name in task["data"]


def through_label_studio(text: str) -> str:
    """What its importer and exporter do: people and times are its own, `result` is kept."""
    tasks = json.loads(text)
    for number, task in enumerate(tasks):
        assert all("completed_by" not in made for made in task["annotations"])  # it knows none
        for made in task["annotations"]:
            made |= {"id": number, "completed_by": 1, "created_at": "2030-01-01T00:00:00Z"}
            made |= {"was_cancelled": False, "ground_truth": True, "lead_time": None}
        task |= {"id": number, "inner_id": number, "total_annotations": len(task["annotations"])}
    return json.dumps(tasks)


def through_argilla(text: str) -> str:
    """As `dataset.records` reads and writes them: people by UUID, no status at an answer."""
    given = json.loads(text)
    for record in given:
        for answers in record["responses"].values():
            for answer in answers:
                assert str(uuid.UUID(answer["user_id"])) == answer["user_id"]
                del answer["status"]
        assert all(isinstance(value, str | int | float) for value in record["metadata"].values())
        record["_server_id"] = str(uuid.uuid4())
    return json.dumps(given)


@pytest.mark.parametrize(
    ("name", "tool"), [("label_studio", through_label_studio), ("argilla", through_argilla)]
)
@given(given_records=RECORDS)
@settings(max_examples=25, deadline=None)
def test_what_the_tool_makes_of_it_is_read_again_exactly(name, tool, given_records):
    text = tool(FORMATS[name].write(given_records))
    assert read_records(text, name, "file") == given_records


def test_annotations_made_in_label_studio_come_in_and_cancelled_ones_do_not():
    (task,) = json.loads(FORMATS["label_studio"].write([records_of_one_label()]))
    (made,) = task["annotations"]
    del made["result"][0]["meta"]
    made |= {"id": 7, "completed_by": 12, "created_at": "2026-03-05T10:00:00.5Z", "lead_time": 3.5}
    task |= {"id": 1, "annotations": [made, {**made, "id": 8, "was_cancelled": True}]}
    (record,) = read_records(json.dumps([task]), "label_studio", "file")
    (label,) = record.labels
    assert (label.annotator, label.pick, label.rating) == ("12", "b", "better")
    assert label.created_at == datetime(2026, 3, 5, 10, 0, 0, 500_000, UTC)


def test_answers_given_in_argilla_come_in_and_drafts_do_not(database):
    (record,) = json.loads(FORMATS["argilla"].write([Record.model_validate(comparison("c"))]))
    ann, bob = str(uuid.uuid4()), str(uuid.uuid4())
    for question, value in (("pick", "a"), ("rating", "slightly_better")):
        record["responses"][question] = [
            {"value": value, "user_id": ann},
            {"value": value, "user_id": bob, "status": "draft"},
        ]
    (found,) = read_records(json.dumps([record]), "argilla", "file")
    with database.writing() as session:
        assert import_records(session, 1, [found], BatchPlan(), START) == (1, 1)
    with database.reading() as session:
        assert records(session, 1)[0].labels[0].created_at == START  # Argilla's files tell no time
    (label,) = found.labels
    assert (label.annotator, label.pick, label.rating) == (ann, "a", "slightly_better")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("jsonl", '{"comparison_id": 3}'),
        ("jsonl", "words"),
        ("csv", "words,comparison_id\n1,2\n"),
        ("csv", "a,b\n1,2\n"),
        ("label_studio", '[{"data": {"secret": "words"}}]'),
        ("argilla", "[{}]"),
        ("argilla", "no JSON"),
    ],
)
def test_a_file_of_another_kind_is_a_user_error_that_quotes_nothing(name, text):
    with pytest.raises(UserError) as caught:
        read_records(text, name, "labels.json")
    assert "words" not in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty message"),
        ({"comparison_id": "c" * 201}, "comparison_id"),
        ({"response_b": " Answer one to c"}, "the same one twice"),
    ],
    ids=["no-messages", "no-question", "blank-prompt", "long-id", "same-responses"],
)
def test_what_could_not_be_labelled_or_delivered_does_not_come_in(database, name, change, problem):
    text = FORMATS[name].write([Record.model_validate(comparison("c") | change)])
    with pytest.raises(UserError, match=problem), database.writing() as session:
        import_records(session, 1, read_records(text, name, "file"), BatchPlan(), START)


@pytest.mark.parametrize("name", ["jsonl", "csv", "label_studio"])
def test_two_labels_of_one_annotator_do_not_come_in(database, name):
    labels = [{"annotator": "x", "pick": pick, "rating": "better"} for pick in "ab"]
    text = FORMATS[name].write([Record.model_validate(comparison("c") | {"labels": labels})])
    with pytest.raises(UserError, match="two labels"), database.writing() as session:
        import_records(session, 1, read_records(text, name, "file"), BatchPlan(), START)


def test_a_record_that_stands_twice_in_a_file_does_not_come_in(database):
    record = Record.model_validate(comparison("c"))
    with pytest.raises(UserError, match="comparison_id"), database.writing() as session:
        import_records(session, 1, [record, record], BatchPlan(), START)


FORMULAS = [
    '=HYPERLINK("http://x","y")',
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "'=1",
    "''+1",
    "＝1",
    "'",
    "''",
]


def test_no_text_is_a_formula_in_a_spreadsheet():
    given_records = [
        Record.model_validate(
            comparison(formula, response_a=formula, category=formula)
            | {"labels": [{"annotator": formula, "pick": "a", "rating": "better"}]}
        )
        for formula in FORMULAS
    ]
    text = FORMATS["csv"].write(given_records)
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    assert not [cell for cell in cells if cell[:1] in set("=+-@\t\r\n＝")]
    assert read_records(text, "csv", "file") == given_records


@pytest.mark.parametrize("name", FORMATS)
def test_a_response_of_any_length_comes_through(name):
    record = Record.model_validate(comparison("c", response_a="a\u202eب😀 \n" * 50_000))
    assert read_records(FORMATS[name].write([record]), name, "file") == [record]
