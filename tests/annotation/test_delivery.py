"""Labels as a week's preferences: once each, late ones later, split by prompt."""

import json
import re
from pathlib import Path

import pytest
from annotation_world import START, browser, comparison, comparisons, publish_rows
from sqlalchemy import select

from annotation.batches import deliver, preference_rows, progress, set_state
from annotation.refusals import NotThereError
from annotation.storage.schema import AuditEntry, BatchState, Entry, Role
from data_contracts.parquet import read_table, write_table
from data_contracts.splits import split_of
from data_contracts.tables import PREFERENCES
from flows import label_weeks


def delivered_rows(service, week: int, test_fraction: float = 0.5) -> list[dict]:
    with service.database.writing() as session:
        return preference_rows(deliver(session, week, START), week, test_fraction)


def test_what_goes_out_satisfies_the_contract_and_names_nobody(service, app, tmp_path):
    publish_rows(service.database, comparisons(6) + comparisons(4, "safety"))
    ann = browser(service, app, "ann")
    for _ in range(6):
        ann.label(ann.open(), "left-better")
    for _ in range(4):
        page = ann.open("safety")
        ann.label(page, "left-better", left_safety="safe", right_safety="unsafe")
    rows = delivered_rows(service, 1)
    file = tmp_path / "v1.parquet"
    assert write_table(file, rows, PREFERENCES) == 10
    table = read_table(file, PREFERENCES).to_pylist()
    assert "ann" not in {row["annotator"] for row in table}
    assert all(row["annotator"].startswith("annotator-") for row in table)
    for row in table:
        opening = row["messages"][0]["content"]
        assert row["split"] == split_of(opening, 0.5, salt="preferences")
    labels = {row["domain"]: row["safety_label"] for row in table}
    assert labels == {"helpfulness": None, "safety": "chosen_safe_other_unsafe"}


def test_chosen_is_what_stood_on_the_chosen_side(service, app):
    publish_rows(service.database, comparisons(10))
    ann = browser(service, app, "ann")
    seen = {}
    for i in range(10):
        page = ann.open()
        side = ("left", "right")[i % 2]
        seen[page.messages[0]["content"]] = (getattr(page, side), {page.left, page.right})
        ann.label(page, f"{side}-better")
    for row in delivered_rows(service, 1):
        chosen, both = seen[row["messages"][0]["content"]]
        assert row["chosen"] == chosen
        assert {row["chosen"], row["rejected"]} == both


def test_late_labels_go_out_with_the_next_batch(service, app):
    publish_rows(service.database, comparisons(3))
    ann, bob = browser(service, app, "ann"), browser(service, app, "bob")
    ann.label(ann.open())
    held = bob.open()
    first = delivered_rows(service, 1)
    assert len(first) == 1
    newcomer = browser(service, app, "eve")
    assert newcomer.open().slot_id is None  # a closed batch hands out nothing
    assert bob.label(held).status_code == 200  # but takes what somebody was at
    publish_rows(service.database, [comparison("next-week")], week=2)
    newcomer.label(newcomer.open())
    second = delivered_rows(service, 2)
    assert len(second) == 2
    assert {row["batch"] for row in second} == {2}
    assert not {r["preference_id"] for r in first} & {r["preference_id"] for r in second}
    assert delivered_rows(service, 1) == first  # again: the same rows


def test_new_comparisons_open_a_closed_week_again(service, app):
    publish_rows(service.database, comparisons(1))
    ann = browser(service, app, "ann")
    ann.label(ann.open())
    assert len(delivered_rows(service, 1)) == 1
    publish_rows(service.database, comparisons(1))
    assert ann.open().slot_id is None  # nothing new: it stays closed
    publish_rows(service.database, [comparison("forgotten")])
    ann.label(ann.open())
    assert len(delivered_rows(service, 1)) == 2


def test_a_batch_that_is_opened_again_adds_to_its_delivery(service, app):
    publish_rows(service.database, comparisons(2))
    ann = browser(service, app, "ann")
    ann.label(ann.open())
    assert len(delivered_rows(service, 1)) == 1
    with service.database.writing() as session:
        set_state(session, 1, BatchState.open, START, "lea")
    ann.label(ann.open())
    assert len(delivered_rows(service, 1)) == 2


def test_a_label_that_was_taken_back_is_not_delivered_and_after_delivery_it_stays(service, app):
    publish_rows(service.database, comparisons(2))
    ann = browser(service, app, "ann")
    ann.label(ann.open(), "left-better")
    ann.post("/undo", {"submission_id": "undo-0001"})
    ann.label(ann.open(), "right-significantly_better")
    (row,) = delivered_rows(service, 1)
    assert row["rating"] == "significantly_better"
    assert ann.post("/undo", {"submission_id": "undo-0002"}).status_code == 422


def test_an_edit_is_one_more_preference_over_the_chosen_response(service, app):
    publish_rows(service.database, comparisons(1))
    ann = browser(service, app, "ann")
    page = ann.open()
    ann.label(page, "left-better", edited_response="By hand")
    label, edit = delivered_rows(service, 1)
    assert (label["chosen"], label["rejected"]) == (page.left, page.right)
    assert (edit["chosen"], edit["rejected"], edit["rating"]) == ("By hand", page.left, None)
    assert edit["split"] == label["split"]


def test_gold_and_repeated_items_are_not_delivered(service, app):
    publish_rows(service.database, comparisons(4), gold={"helpfulness-0": "a"}, check_every=2)
    ann = browser(service, app, "ann")
    while (page := ann.open()).slot_id is not None:
        ann.label(page)
    rows = delivered_rows(service, 1)
    assert sorted(row["prompt_id"] for row in rows) == [
        f"prompt-of-helpfulness-{i}" for i in (1, 2, 3)
    ]


def disagreement(service, app):
    publish_rows(service.database, [comparison("c")], overlap=2)
    for name, one in (("ann", "better"), ("bob", "significantly_better")):
        somebody = browser(service, app, name)
        page = somebody.open()
        wants_first = (name == "ann") == ("one" in page.left)
        somebody.label(page, f"{'left' if wants_first else 'right'}-{one}")
    return browser(service, app, "lea", Role.lead)


def test_without_a_decision_both_labels_go_out(service, app):
    disagreement(service, app)
    rows = delivered_rows(service, 1)
    assert {row["chosen"] for row in rows} == {"Answer one to c", "Answer two to c"}


def test_the_leads_decision_goes_out_in_place_of_the_labels(service, app):
    lead = disagreement(service, app)
    assert "Disagreements to decide: 1" in lead.client.get("/lead").text
    html = lead.client.get("/lead/batches/1/disagreements").text
    assert "1 disagreements" in html
    form = {"submission_id": "decision-1", "choice": "right-slightly_better"}
    assert lead.post("/lead/items/1/decision", form).status_code == 303
    assert "Nothing to decide" in lead.client.get("/lead/batches/1/disagreements").text
    assert "Disagreements to decide: 0" in lead.client.get("/lead").text
    (row,) = delivered_rows(service, 1)
    assert (row["chosen"], row["rating"]) == ("Answer two to c", "slightly_better")


def test_labels_that_a_decision_replaced_never_go_out(service, app):
    lead = disagreement(service, app)
    form = {"submission_id": "decision-1", "choice": "right-slightly_better"}
    lead.post("/lead/items/1/decision", form)
    first = delivered_rows(service, 1)
    assert delivered_rows(service, 1) == first  # nor when the batch goes out again
    publish_rows(service.database, [comparison("next-week")], week=2)
    assert delivered_rows(service, 2) == []


def decide(lead, name: str, choice: str) -> None:
    form = {"submission_id": f"decision-{name}", "choice": choice}
    assert lead.post("/lead/items/1/decision", form).status_code == 303


def delivered_table(service, file: Path, week: int = 1) -> list[dict]:
    label_weeks.deliver_labels(service.database, week, file, 0.5)
    return read_table(file, PREFERENCES).to_pylist()


def test_a_lead_decides_an_item_that_they_labelled_after_it_has_gone_out(service, app, tmp_path):
    """The week goes out again, and as decided; the lead's label and decision are not one row."""
    publish_rows(service.database, [comparison("c"), comparison("d")], overlap=2)
    ann, lead = browser(service, app, "ann"), browser(service, app, "lea", Role.lead)
    for somebody, wanted in ((ann, "one"), (lead, "two")):
        for _ in range(2):
            page = somebody.open()
            somebody.label(page, "left-better" if wanted in page.left else "right-better")
    file = tmp_path / "v1.parquet"
    first = delivered_table(service, file)
    assert len(first) == 4
    decide(lead, "0001", "right-slightly_better")
    again = delivered_table(service, file)
    (decision,) = [row for row in again if row not in first]
    assert decision["rating"] == "slightly_better"
    assert decision["chosen"].startswith("Answer two")
    other = [row for row in first if row["prompt_id"] != decision["prompt_id"]]
    assert again == [*other, decision]  # its labels are not in the week any more
    assert decision["preference_id"] not in {row["preference_id"] for row in first}
    assert delivered_table(service, file) == again


def test_the_last_of_two_decisions_on_one_item_goes_out(service, app, tmp_path):
    lead = disagreement(service, app)
    decide(lead, "0001", "right-slightly_better")
    file = tmp_path / "v1.parquet"
    (first,) = delivered_table(service, file)
    decide(lead, "0002", "left-better")  # in another tab, loaded before the first decision
    (second,) = delivered_table(service, file)
    assert (second["chosen"], second["rating"]) == ("Answer one to c", "better")
    assert second["preference_id"] != first["preference_id"]
    reply = lead.client.get("/lead/batches/1/preferences.jsonl")
    assert [json.loads(line)["preference_id"] for line in reply.text.splitlines()] == [
        second["preference_id"]
    ]


def test_a_decision_that_goes_out_in_a_later_week_leaves_the_earlier_one_as_it_was(
    service, app, tmp_path
):
    """Models have been trained on that."""
    lead = disagreement(service, app)
    first = delivered_table(service, tmp_path / "v1.parquet")
    publish_rows(service.database, [comparison("next-week")], week=2)
    decide(lead, "0001", "right-slightly_better")
    (decision,) = delivered_table(service, tmp_path / "v2.parquet", week=2)
    assert decision["prompt_id"] == "prompt-of-c"
    assert delivered_table(service, tmp_path / "v1.parquet") == first
    assert len({row["preference_id"] for row in [*first, decision]}) == 3


def test_an_item_that_is_never_delivered_takes_no_decision(service, app):
    publish_rows(service.database, comparisons(2), gold={"helpfulness-0": "a"})
    lead = browser(service, app, "lea", Role.lead)
    statuses = {
        lead.post(
            f"/lead/items/{item}/decision",
            {"submission_id": f"decision-{item}", "choice": "left-better"},
        ).status_code
        for item in (1, 2)
    }
    assert statuses == {303, 422}
    rows = delivered_rows(service, 1)
    assert [row["prompt_id"] for row in rows] == ["prompt-of-helpfulness-1"]


def test_a_label_of_an_item_that_was_taken_out_is_not_taken_back(service, app):
    """Else its slot would be wanted again, by a batch that can then never be complete."""
    publish_rows(service.database, comparisons(2))
    ann, lead = browser(service, app, "ann"), browser(service, app, "lea", Role.lead)
    ann.label(ann.open())
    with service.database.reading() as session:
        (entry,) = session.scalars(select(Entry)).all()
    lead.post(f"/lead/items/{entry.item_id}/retirement")
    assert ann.post("/undo", {"submission_id": "undo-0001"}).status_code == 422
    with service.database.reading() as session:
        assert progress(session, 1).num_wanted == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_edit_that_changes_nothing_is_no_preference(service, app, side):
    """A text field gives other line ends than the response has, and drops its last ones."""
    texts = {"response_a": "One\r\nline\n", "response_b": "Two\nlines"}
    publish_rows(service.database, [comparison("c", **texts)])
    ann = browser(service, app, "ann")
    page = ann.open()
    edited = getattr(page, side).strip().replace("\r\n", "\n").replace("\n", "\r\n")
    ann.label(page, "left-better", edited_response=edited)
    assert len(delivered_rows(service, 1)) == 1


def test_a_delivery_that_is_cut_off_goes_out_once(service, app, tmp_path, monkeypatch):
    """Killed before the labels count as delivered there is no file; after it, the same file."""
    publish_rows(service.database, comparisons(2))
    ann = browser(service, app, "ann")
    ann.label(ann.open())
    file = tmp_path / "v1.parquet"
    for place in ("write_table", "os.replace"):
        with monkeypatch.context() as patch:
            target = label_weeks if place == "write_table" else label_weeks.os
            patch.setattr(target, place.rpartition(".")[2], lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                label_weeks.deliver_labels(service.database, 1, file, 0.5)
        assert not file.exists()
    assert label_weeks.deliver_labels(service.database, 1, file, 0.5) == 1
    assert [entry.name for entry in tmp_path.glob("*v1*")] == ["v1.parquet"]
    publish_rows(service.database, [comparison("next-week")], week=2)
    assert delivered_rows(service, 2) == []


def test_an_item_that_the_lead_takes_out_is_gone(service, app):
    publish_rows(service.database, comparisons(1))
    ann, lead = browser(service, app, "ann"), browser(service, app, "lea", Role.lead)
    page = ann.open()
    ann.post(
        f"/slots/{page.slot_id}/pass",
        {"submission_id": "flag-0001", "kind": "flag", "reason": "broken text"},
    )
    assert "broken text" in lead.client.get("/lead").text
    assert lead.post("/lead/items/1/retirement").status_code == 303
    assert browser(service, app, "bob").open().slot_id is None


def test_publishing_twice_adds_nothing(service):
    for _ in range(2):
        publish_rows(service.database, comparisons(5), overlap=2)
    with service.database.reading() as session:
        assert progress(session, 1).num_wanted == 10


def test_a_batch_is_ready_when_done_or_past_its_deadline_with_the_quorum(service, app):
    publish_rows(service.database, comparisons(4), deadline=START.replace(month=4))
    ann = browser(service, app, "ann")
    for _ in range(3):
        ann.label(ann.open())
    with service.database.reading() as session:
        done = progress(session, 1)
    assert (done.num_done, done.num_wanted, done.share) == (3, 4, 0.75)
    assert not done.is_ready(0.5, START)
    assert done.is_ready(0.75, START.replace(month=4))
    assert not done.is_ready(0.8, START.replace(month=5))


def test_there_is_no_progress_without_a_batch(service):
    with service.database.reading() as session, pytest.raises(NotThereError, match="no batch 9"):
        progress(session, 9)


def test_the_lead_sees_what_every_week_delivered(service, app):
    for week in (9, 10):
        publish_rows(service.database, [comparison(f"c{week}")], week=week)
        ann = browser(service, app, f"ann{week}")
        ann.label(ann.open())
        delivered_rows(service, week)
    lead = browser(service, app, "lea", Role.lead)
    html = lead.client.get("/lead/weeks").text
    rows = re.findall(r'<th scope="row">(\w+)</th><td>(\d+)</td>', html)
    assert rows == [("9", "1"), ("10", "1"), ("total", "2")]


def test_the_leads_download_is_what_would_go_out(service, app):
    publish_rows(service.database, comparisons(2))
    ann, lead = browser(service, app, "ann"), browser(service, app, "lea", Role.lead)
    ann.label(ann.open())
    reply = lead.client.get("/lead/batches/1/preferences.jsonl")
    assert len(reply.text.splitlines()) == 1
    assert '"annotator": "annotator-' in reply.text
    with service.database.reading() as session:
        assert session.scalars(select(Entry)).one().submission_id not in reply.text
        exported = select(AuditEntry.subject).where(AuditEntry.action == "export")
        assert session.scalars(exported).all() == ["batch 1"]
