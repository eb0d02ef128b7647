"""Who gets what: no item twice, none left lying, on SQLite and where there is one on Postgres."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from annotation_postgres import fresh_postgres_database
from annotation_world import START, add_user, comparisons, publish_rows
from sqlalchemy import select, text
from sqlalchemy.exc import DatabaseError

from annotation.labelling import Answer, submit, undo
from annotation.refusals import NotYoursError
from annotation.storage.database import Database, open_database
from annotation.storage.schema import Entry, Item, Slot
from annotation.work_queue import HOLD, claim, renew

LATER = START + HOLD + timedelta(seconds=1)


def claimed(database: Database, user, now=START, domain="helpfulness") -> Slot | None:
    with database.writing() as session:
        return claim(session, user, domain, now)


def labelled(database: Database, user, slot: Slot, name: str, now=START, side="left") -> None:
    answer = Answer(submission_id=f"submission-{name}", side=side, rating="better")
    with database.writing() as session:
        submit(session, user, slot.id, answer, now)


def work_off(database: Database, user, most: int = 100) -> list[int]:
    """Label until nothing is left; the items in order."""
    items = []
    while len(items) < most and (slot := claimed(database, user)) is not None:
        labelled(database, user, slot, f"{user.id}-{slot.id}")
        items.append(slot.item_id)
    return items


def test_two_annotators_never_hold_the_same_item(any_database):
    publish_rows(any_database, comparisons(30))
    people = [add_user(any_database, f"user{i}") for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        work = list(pool.map(lambda user: work_off(any_database, user), people))
    assert sorted(item for items in work for item in items) == list(range(1, 31))


def test_overlap_gives_each_item_to_that_many_different_people(any_database):
    publish_rows(any_database, comparisons(12), overlap=2)
    people = [add_user(any_database, f"user{i}") for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        work = list(pool.map(lambda user: work_off(any_database, user), people))
    assert all(len(set(items)) == len(items) for items in work)
    assert set(Counter(item for items in work for item in items).values()) == {2}
    assert sum(map(len, work)) == 24


def test_every_item_gets_its_first_label_before_any_gets_its_second(database):
    publish_rows(database, comparisons(5), overlap=2)
    ann, bob = add_user(database, "ann"), add_user(database, "bob")
    assert not set(work_off(database, ann, most=2)) & set(work_off(database, bob, most=3))


def test_the_order_of_a_batch_is_seeded_and_not_that_of_the_table(database):
    publish_rows(database, comparisons(20), seed=7)
    items = work_off(database, add_user(database, "ann"))
    with database.reading() as session:
        names = [session.get_one(Item, item).comparison_id for item in items]
    assert names != [row["comparison_id"] for row in comparisons(20)]
    assert sorted(names) == sorted(row["comparison_id"] for row in comparisons(20))


def test_an_abandoned_item_returns_after_a_time(any_database):
    publish_rows(any_database, comparisons(1))
    ann, bob = add_user(any_database, "ann"), add_user(any_database, "bob")
    slot = claimed(any_database, ann)
    assert slot is not None
    assert claimed(any_database, bob, LATER - timedelta(minutes=1)) is None
    taken = claimed(any_database, bob, LATER)
    assert taken is not None
    assert taken.id == slot.id
    with pytest.raises(NotYoursError, match="somebody else has it"):
        labelled(any_database, ann, slot, "ann-late", LATER)


def test_who_comes_back_before_anybody_else_may_still_answer(database):
    publish_rows(database, comparisons(1))
    ann = add_user(database, "ann")
    slot = claimed(database, ann)
    labelled(database, ann, slot, "ann-late", LATER)
    assert claimed(database, add_user(database, "bob"), LATER) is None


def test_an_open_page_keeps_its_item(database):
    publish_rows(database, comparisons(1))
    ann, bob = add_user(database, "ann"), add_user(database, "bob")
    slot = claimed(database, ann)
    with database.writing() as session:
        renew(session, ann, slot.id, LATER - timedelta(minutes=1))
    assert claimed(database, bob, LATER) is None


def test_one_submission_that_arrives_many_times_at_once_is_one_label(any_database):
    publish_rows(any_database, comparisons(1))
    ann = add_user(any_database, "ann")
    slot = claimed(any_database, ann)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: labelled(any_database, ann, slot, "same-one"), range(8)))
    with any_database.reading() as session:
        assert len(session.scalars(select(Entry)).all()) == 1


def test_an_undo_that_arrives_many_times_at_once_takes_back_one_label(any_database):
    publish_rows(any_database, comparisons(3))
    ann = add_user(any_database, "ann")
    work_off(any_database, ann, most=2)

    def take_back(_: int) -> int:
        with any_database.writing() as session:
            return undo(session, ann, "undo-once", START).id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(take_back, range(8)))) == 1
    with any_database.reading() as session:
        kinds = Counter(session.scalars(select(Entry.kind)))
    assert kinds == {"label": 2, "undo": 1}


def test_postgres_knows_how_large_a_batch_is_as_soon_as_it_is_published(postgres_url):
    database = open_database(fresh_postgres_database(postgres_url))
    publish_rows(database, comparisons(300), overlap=2)
    sizes = "SELECT relname, reltuples FROM pg_class WHERE relname IN ('items', 'slots')"
    with database.reading() as session:
        assert dict(session.execute(text(sizes)).tuples().all()) == {"items": 300, "slots": 600}
    database.close()


def test_writers_queue_and_none_is_starved(database):
    """Polling, SQLite's own way to wait, let some threads wait for longer than its time-out."""
    with ThreadPoolExecutor(1) as pool:
        with database.writing():
            begun = pool.submit(add_user, database, "ann")
            with pytest.raises(TimeoutError):
                begun.result(0.2)
        assert begun.result(20).username == "ann"


def test_checks_alternate_between_gold_and_own_items(database):
    rows = comparisons(8)
    gold = {"helpfulness-0": "a", "helpfulness-1": "b"}
    publish_rows(database, rows, gold=gold, check_every=2)
    ann = add_user(database, "ann")
    purposes = []
    while (slot := claimed(database, ann)) is not None:
        purposes.append(slot.purpose)
        labelled(database, ann, slot, str(slot.id))
    assert purposes[:8] == [
        "collect", "gold", "collect", "repeat", "collect", "gold", "collect", "repeat",
    ]  # fmt: skip
    assert Counter(purposes)["gold"] == 2  # each of the two once
    assert Counter(purposes)["collect"] == 6


@pytest.mark.parametrize("change", ["UPDATE labels SET pick = 'b'", "DELETE FROM labels"])
def test_the_history_cannot_be_changed(any_database, change):
    publish_rows(any_database, comparisons(1))
    ann = add_user(any_database, "ann")
    labelled(any_database, ann, claimed(any_database, ann), "one-label")
    with (
        pytest.raises(DatabaseError, match="append-only"),
        any_database.writing() as session,
    ):
        session.execute(text(change))
