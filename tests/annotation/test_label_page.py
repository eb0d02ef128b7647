"""The annotator's way through a task, over the pages themselves."""

import re

from annotation_world import START, add_user, browser, comparison, comparisons, publish_rows
from sqlalchemy import select

from annotation import work_queue
from annotation.batches import new_item
from annotation.labelling import Answer, fingerprint, sides, submit
from annotation.storage.schema import Entry
from annotation.work_queue import claim
from data_contracts.ratings import Rating


def entries(service):
    with service.database.reading() as session:
        return session.scalars(select(Entry).order_by(Entry.id)).all()


def test_a_choice_and_its_rating_are_one_gesture(service, app):
    publish_rows(service.database, comparisons(2))
    ann = browser(service, app, "ann")
    first = ann.open()
    reply = ann.label(first, "right-slightly_better")
    assert reply.status_code == 200
    (entry,) = entries(service)
    chosen = entry.item.response_a if entry.pick == "a" else entry.item.response_b
    assert chosen == first.right
    assert entry.rating == Rating.slightly_better
    assert entry.safety_label is None
    assert first.submission_id == entry.submission_id
    assert str(first.slot_id) not in reply.text.split('data-slot="')[1][:5]


def test_the_page_offers_all_eight_degrees_under_the_keys_one_to_eight(service, app):
    publish_rows(service.database, comparisons(1))
    html = browser(service, app, "ann").client.get("/tasks/helpfulness").text
    for key, value in enumerate(
        [f"left-{r}" for r in Rating] + [f"right-{r}" for r in reversed(Rating)], start=1
    ):
        assert f'value="{value}"' in html
        assert f'data-key="{key}"' in html.split(f'value="{value}"')[1].split(">")[0]


def test_without_script_a_form_leads_to_the_next_item(service, app):
    publish_rows(service.database, comparisons(2))
    ann = browser(service, app, "ann")
    first = ann.open()
    form = {"submission_id": first.submission_id, "shown": first.shown, "choice": "left-better"}
    reply = ann.post(f"/slots/{first.slot_id}/label", form)
    assert (reply.status_code, reply.headers["location"]) == (303, "/tasks/helpfulness")
    second = ann.open()
    assert second.slot_id not in (None, first.slot_id)
    ann.label(second)
    assert ann.open().slot_id is None


def test_a_submission_that_is_sent_twice_is_kept_once(service, app):
    publish_rows(service.database, comparisons(2))
    ann = browser(service, app, "ann")
    first = ann.open()
    replies = [ann.label(first, "left-better") for _ in range(2)]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert len(entries(service)) == 1


def test_an_item_that_is_done_takes_no_second_submission(service, app):
    publish_rows(service.database, comparisons(1))
    ann = browser(service, app, "ann")
    page = ann.open()
    ann.label(page)
    reply = ann.label(page, submission_id="another-submission")
    assert reply.status_code == 409
    assert len(entries(service)) == 1


def test_reloading_shows_the_same_item_with_the_same_sides(service, app):
    publish_rows(service.database, comparisons(8))
    ann = browser(service, app, "ann")
    pages = [ann.open() for _ in range(4)]
    assert len({(page.slot_id, page.left, page.right) for page in pages}) == 1


def held_again(service, app, clock, monkeypatch, second_draw: int):
    """Ann and two pages of hers of one item: in between somebody else had it."""
    draws = iter([0, 0, second_draw])
    monkeypatch.setattr(work_queue.secrets, "randbelow", lambda _: next(draws))
    publish_rows(service.database, comparisons(1))
    ann, bob = browser(service, app, "ann"), browser(service, app, "bob")
    pages = [ann.open()]
    clock.move(minutes=31)
    assert bob.open().slot_id == pages[0].slot_id
    clock.move(minutes=31)
    pages.append(ann.open())
    assert pages[1].slot_id == pages[0].slot_id
    return ann, *pages


def test_a_page_with_other_sides_than_the_items_new_hold_is_refused(
    service, app, clock, monkeypatch
):
    ann, old, new = held_again(service, app, clock, monkeypatch, second_draw=1)
    assert (old.left, old.right) == (new.right, new.left)
    reply = ann.label(old, "left-better", edited_response="Better by hand")
    assert reply.status_code == 409
    assert "may have changed sides" in reply.text
    assert entries(service) == []
    assert ann.label(new, "left-better").status_code == 200
    assert entries(service)[0].pick == "b"


def test_an_old_page_with_the_same_sides_still_counts(service, app, clock, monkeypatch):
    ann, old, _ = held_again(service, app, clock, monkeypatch, second_draw=0)
    assert ann.label(old, "left-better").status_code == 200
    assert entries(service)[0].pick == "a"


def test_a_client_that_shows_nothing_says_nothing_of_its_sides(service, app):
    publish_rows(service.database, comparisons(1))
    ann = browser(service, app, "ann")
    page = ann.open()
    assert ann.label(page, shown="0" * 64).status_code == 409
    assert ann.label(page, shown="").status_code == 200


def test_what_a_form_says_of_its_sides_tells_nothing_of_their_models():
    """The same two texts are the same, whichever of them is the comparison's first."""
    item = new_item(1, 1, comparison("c0", response_a="one", response_b="two"), None)
    turned = new_item(1, 2, comparison("c1", response_a="two", response_b="one"), None)
    shown = fingerprint(sides(item, is_swapped=False))
    assert shown == fingerprint(sides(turned, is_swapped=True))
    assert shown != fingerprint(sides(item, is_swapped=True))


def test_no_page_names_a_model_or_its_temperature(service, app):
    rows = [comparison(f"c{i}", model_a="model-alpha", model_b="model-beta") for i in range(3)]
    publish_rows(service.database, rows)
    ann = browser(service, app, "ann")
    pages = [ann.client.get("/tasks/helpfulness").text] + [ann.label(ann.open()).text] * 2
    for html in pages:
        assert not {"model-alpha", "model-beta", "0.75"} & set(re.split(r'[\s"<>]+', html))


def test_sides_are_drawn_at_random(database):
    publish_rows(database, comparisons(40))
    user = add_user(database, "ann")
    swapped = []
    for i in range(40):
        with database.writing() as session:
            slot = claim(session, user, "helpfulness", START)
            swapped.append(slot.is_swapped)
            answer = Answer(submission_id=f"submission-{i}", side="left", rating="better")
            entry = submit(session, user, slot.id, answer, START)
            assert entry.pick == ("b" if slot.is_swapped else "a")
    assert 5 <= sum(swapped) <= 35  # chance of failing: 2e-7


# ---- safety ------------------------------------------------------------------------------------


def test_a_safety_label_follows_from_both_sides(service, app):
    publish_rows(service.database, comparisons(4, "safety"))
    ann = browser(service, app, "ann")
    for choice, left, right in (
        ("left-better", "safe", "unsafe"),
        ("right-better", "unsafe", "safe"),
        ("left-better", "safe", "safe"),
        ("right-better", "unsafe", "unsafe"),
    ):
        page = ann.open("safety")
        assert ann.label(page, choice, left_safety=left, right_safety=right).status_code == 200
    assert [entry.safety_label for entry in entries(service)] == [
        "chosen_safe_other_unsafe",
        "chosen_safe_other_unsafe",
        "both_safe",
        "both_unsafe",
    ]


def test_chosen_unsafe_other_safe_is_refused_with_an_explanation(service, app):
    publish_rows(service.database, comparisons(1, "safety"))
    ann = browser(service, app, "ann")
    page = ann.open("safety")
    reply = ann.label(page, "left-better", left_safety="unsafe", right_safety="safe")
    assert reply.status_code == 422
    assert reply.headers["hx-retarget"] == "#notice"
    assert "you chose the unsafe response although the other one is safe" in reply.text
    assert entries(service) == []
    again = ann.label(page, "right-better", left_safety="unsafe", right_safety="safe")
    assert again.status_code == 200


def test_a_safety_task_needs_an_answer_for_both_sides(service, app):
    publish_rows(service.database, comparisons(1, "safety"))
    ann = browser(service, app, "ann")
    reply = ann.label(ann.open("safety"), "left-better", left_safety="safe")
    assert reply.status_code == 422
    assert "whether they are safe" in reply.text


# ---- skip, flag, undo, edit ----------------------------------------------------------------------


def test_a_skipped_item_goes_to_somebody_else_and_not_back(service, app):
    publish_rows(service.database, comparisons(1))
    ann, bob = browser(service, app, "ann"), browser(service, app, "bob")
    page = ann.open()
    form = {"submission_id": "skip-0001", "kind": "skip", "reason": "I know nothing about it"}
    assert ann.post(f"/slots/{page.slot_id}/pass", form, htmx=True).status_code == 200
    assert ann.open().slot_id is None
    assert bob.open().slot_id == page.slot_id
    (entry,) = entries(service)
    assert (entry.kind, entry.reason) == ("skip", "I know nothing about it")


def test_a_skip_needs_a_reason(service, app):
    publish_rows(service.database, comparisons(1))
    ann = browser(service, app, "ann")
    page = ann.open()
    form = {"submission_id": "skip-0001", "kind": "flag", "reason": "  "}
    assert ann.post(f"/slots/{page.slot_id}/pass", form).status_code == 422
    assert ann.open().slot_id == page.slot_id


def test_undo_adds_a_correction_and_shows_the_item_again(service, app):
    publish_rows(service.database, comparisons(3))
    ann = browser(service, app, "ann")
    first = ann.open()
    ann.label(first, "left-better")
    reply = ann.post("/undo", {"submission_id": "undo-0001"}, htmx=True)
    assert f'data-slot="{first.slot_id}"' in reply.text
    ann.label(ann.open(), "right-better")
    label, undo, relabel = entries(service)
    assert (undo.kind, undo.corrects) == ("undo", label.id)
    assert (label.kind, relabel.kind) == ("label", "label")
    assert label.pick != relabel.pick


def test_undo_twice_takes_back_two_labels(service, app):
    publish_rows(service.database, comparisons(3))
    ann = browser(service, app, "ann")
    for _ in range(2):
        ann.label(ann.open())
    for name in ("undo-0001", "undo-0002"):
        assert ann.post("/undo", {"submission_id": name}).status_code == 303
    assert ann.post("/undo", {"submission_id": "undo-0003"}).status_code == 422
    assert [entry.kind for entry in entries(service)] == ["label", "label", "undo", "undo"]


def test_an_edited_response_is_kept_beside_the_choice(service, app):
    publish_rows(service.database, comparisons(1))
    ann = browser(service, app, "ann")
    ann.label(ann.open(), "left-better", edited_response="Better by hand\n")
    assert entries(service)[0].edited_response == "Better by hand\n"


def test_an_edit_as_long_as_the_field_allows_fits_in_a_request(service, app):
    publish_rows(service.database, comparisons(1))
    ann = browser(service, app, "ann")
    assert ann.label(ann.open(), edited_response="語" * 100_000).status_code == 200
    assert len(entries(service)[0].edited_response) == 100_000


def test_line_ends_of_a_form_are_those_of_text(service, app):
    """Without script a browser sends CR LF; no model should learn that people write it."""
    publish_rows(service.database, comparisons(1))
    ann = browser(service, app, "ann")
    ann.label(ann.open(), "left-better", edited_response="One\r\ntwo\rthree\n")
    assert entries(service)[0].edited_response == "One\ntwo\nthree\n"


# ---- what is shown -------------------------------------------------------------------------------


def test_a_dialogue_of_several_turns_is_shown_whole(service, app):
    messages = [
        {"role": "system", "content": "Answer in rhyme."},
        {"role": "user", "content": "First\nquestion"},
        {"role": "assistant", "content": "First answer"},
        {"role": "user", "content": "Second question"},
    ]
    publish_rows(service.database, [comparison("c", messages=messages)])
    assert browser(service, app, "ann").open().messages == messages


def test_code_right_to_left_and_leading_blanks_arrive_unchanged(service, app):
    code = "\n  Look:\n```python\n\n  print('<b>')\n```\nand `x`.\n"
    hebrew = "שלום עולם"
    publish_rows(service.database, [comparison("c", response_a=code, response_b=hebrew)])
    ann = browser(service, app, "ann")
    page = ann.open()
    assert {page.left, page.right} == {code, hebrew}
    html = ann.client.get("/tasks/helpfulness").text
    assert f'<div class="prose" dir="auto">{hebrew}</div>' in html
    assert '<code dir="ltr" tabindex="0">```python' in html


def test_progress_and_own_agreement_are_on_the_start_page(service, app):
    publish_rows(service.database, comparisons(4), check_every=3)
    ann = browser(service, app, "ann")
    seen = []
    for _ in range(3):
        page = ann.open()
        seen.append({page.left, page.right})
        ann.label(page, "left-better" if "one" in page.left else "right-better")
    assert seen[2] == seen[0]  # the third item is the first one again
    html = ann.client.get("/").text
    assert "2 of 4 labels" in html
    assert "1 of 1 repeated items" in html
