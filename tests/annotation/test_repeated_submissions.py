"""A form that is sent again: the same changes nothing, another answer is not swallowed."""

import pytest
from annotation_world import add_user, browser, comparison, comparisons, publish_rows
from sqlalchemy import select

from annotation.labelling import Answer, adjudicate
from annotation.page_reader import read_page
from annotation.refusals import NotYoursError
from annotation.storage.schema import Entry, Item, Role


def entries(service):
    with service.database.reading() as session:
        return session.scalars(select(Entry).order_by(Entry.id)).all()


def said(entry):
    return (
        entry.kind,
        entry.pick,
        entry.rating,
        entry.safety_label,
        entry.edited_response,
        entry.reason,
    )


ANOTHER_ANSWER = {
    "side": {"choice": "right-better"},
    "rating": {"choice": "left-significantly_better"},
    "edit": {"edited_response": "Better by hand"},
    "safety": {"right_safety": "safe"},
    "one that is refused": {"left_safety": "unsafe"},
}


@pytest.mark.parametrize("change", ANOTHER_ANSWER.values(), ids=ANOTHER_ANSWER)
def test_another_answer_under_a_kept_submission_is_refused_and_u_takes_the_kept_one_back(
    service, app, change
):
    publish_rows(service.database, comparisons(3, "safety"))
    ann = browser(service, app, "ann")
    page = ann.open("safety")
    answer = {"choice": "left-better", "left_safety": "safe", "right_safety": "unsafe"}
    ann.label(page, **answer)  # kept; but say the answer to it was lost
    kept = said(*entries(service))
    reply = ann.label(page, **(answer | change))
    assert reply.status_code == 409
    assert reply.headers["hx-retarget"] == "#notice"
    assert "your first answer to this item had been kept" in reply.text
    assert "Press u" in reply.text
    assert [said(entry) for entry in entries(service)] == [kept]

    again = read_page(ann.post("/undo", {"submission_id": page.undo_id}, htmx=True).text)
    assert again.slot_id == page.slot_id
    second = {"choice": "right-better", "left_safety": "unsafe", "right_safety": "safe"}
    assert ann.label(again, **second).status_code == 200
    label, undo, relabel = entries(service)
    assert (undo.kind, undo.corrects) == ("undo", label.id)
    assert relabel.pick != label.pick


def test_who_does_not_take_the_kept_answer_back_gets_the_next_item(service, app):
    publish_rows(service.database, comparisons(2))
    ann = browser(service, app, "ann")
    page = ann.open()
    ann.label(page, "left-better")
    assert ann.label(page, "right-better").status_code == 409
    assert ann.open().slot_id not in (None, page.slot_id)


def test_a_page_knows_how_to_undo_before_there_is_anything_to_undo(service, app):
    """The first label may be kept without the page being told; its script then shows the form."""
    publish_rows(service.database, comparisons(2))
    ann = browser(service, app, "ann")
    html = ann.client.get("/tasks/helpfulness").text
    assert "hidden" in html.split('action="/undo"')[1].split(">")[0]
    html = ann.label(read_page(html)).text
    assert "hidden" not in html.split('action="/undo"')[1].split(">")[0]


def test_u_is_not_offered_where_it_would_take_back_another_label(service, app):
    publish_rows(service.database, comparisons(3))
    ann = browser(service, app, "ann")
    page = ann.open()
    ann.label(page, "left-better")
    ann.label(ann.open())  # in another tab
    reply = ann.label(page, "right-better")
    assert reply.status_code == 409
    assert "Press u" not in reply.text
    assert "tell your lead" in reply.text


def test_an_answer_that_was_taken_back_is_not_acknowledged_again(service, app):
    publish_rows(service.database, comparisons(1))
    ann = browser(service, app, "ann")
    page = ann.open()
    ann.label(page, "left-better")
    ann.post("/undo", {"submission_id": page.undo_id}, htmx=True)
    reply = ann.label(page, "left-better")
    assert reply.status_code == 409
    assert "taken back" in reply.text
    assert ann.open().slot_id == page.slot_id


def test_an_edit_that_comes_again_with_other_line_ends_is_the_same(service, app):
    """With script and without, a browser sends the same field differently."""
    publish_rows(service.database, comparisons(1))
    ann = browser(service, app, "ann")
    page = ann.open()
    for edited in ("One\ntwo", "One\r\ntwo"):
        assert ann.label(page, edited_response=edited).status_code == 200
    assert len(entries(service)) == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [({}, 200), ({"reason": "another reason"}, 409), ({"kind": "flag"}, 409)],
    ids=["the same", "reason", "kind"],
)
def test_a_skip_that_is_sent_again_says_what_was_kept(service, app, change, status):
    publish_rows(service.database, comparisons(2))
    ann = browser(service, app, "ann")
    page = ann.open()
    form = {"submission_id": "skip-0001", "kind": "skip", "reason": "no idea"}
    ann.post(f"/slots/{page.slot_id}/pass", form, htmx=True)
    reply = ann.post(f"/slots/{page.slot_id}/pass", form | change, htmx=True)
    assert reply.status_code == status
    assert ("your first answer to this item had been kept" in reply.text) == (status == 409)
    assert [said(entry) for entry in entries(service)] == [
        ("skip", None, None, None, None, "no idea")
    ]
    assert ann.open().slot_id not in (None, page.slot_id)


# ---- the lead's decisions ------------------------------------------------------------------------


def decide(lead, item: int = 1, choice: str = "left-better", name: str = "decision-1"):
    form = {"submission_id": name, "choice": choice}
    return lead.post(f"/lead/items/{item}/decision", form)


def disagreement(service, app):
    publish_rows(service.database, [comparison("c")], overlap=2)
    for name, text in (("ann", "one"), ("bob", "two")):
        somebody = browser(service, app, name)
        page = somebody.open()
        somebody.label(page, "left-better" if text in page.left else "right-better")
    return browser(service, app, "lea", Role.lead)


def test_another_decision_under_a_kept_submission_is_refused_and_can_be_made_again(service, app):
    lead = disagreement(service, app)
    assert [decide(lead).status_code for _ in range(2)] == [303, 303]
    reply = decide(lead, choice="right-better")
    assert reply.status_code == 409
    assert "your first answer to this item had been kept" in reply.text
    kept = entries(service)[2:]
    assert [(entry.kind, entry.pick) for entry in kept] == [("adjudication", "a")]

    fresh = reply.text.split('name="submission_id" value="')[1].split('"')[0]
    assert decide(lead, choice="right-better", name=fresh).status_code == 303
    first, second = entries(service)[2:]
    assert (second.pick, second.corrects) == ("b", first.id)
    assert decide(lead).status_code == 409  # the first one stands no more


def test_a_decision_under_the_submission_of_another_item_is_refused(service):
    publish_rows(service.database, comparisons(2))
    lead = add_user(service.database, "lea", Role.lead)
    answer = Answer(submission_id="decision-1", side="left", rating="better")
    with service.database.writing() as session:
        adjudicate(session, lead, session.get_one(Item, 1), answer, service.now())
    with service.database.writing() as session, pytest.raises(NotYoursError, match="another item"):
        adjudicate(session, lead, session.get_one(Item, 2), answer, service.now())
