"""Server and database are killed again and again while simulated annotators submit."""

import threading
import time
from collections import Counter

import pytest
from annotation_postgres import PostgresServer, fresh_postgres_database, postgres_server
from annotation_server import Server
from annotation_world import START, comparison, publish_rows
from sqlalchemy import func, select

from annotation.accounts import invite
from annotation.simulation import simulate
from annotation.storage.database import Database, open_database
from annotation.storage.schema import Entry, Role, Slot, SlotPurpose
from data_contracts.ratings import Domain
from stages.sandbox.annotator import AnnotatorSettings

NUM_ITEMS = 400
NUM_KILLS = 3


def test_every_acknowledged_label_survives_kills_of_the_server(database):
    survives_kills(database)


@pytest.mark.slow
def test_every_acknowledged_label_survives_on_postgres_too(postgres_url):
    database = open_database(fresh_postgres_database(postgres_url))
    survives_kills(database)
    database.close()


@pytest.mark.slow
def test_every_acknowledged_label_survives_kills_of_the_database(tmp_path):
    """A Postgres of its own, since the other tests' must not die."""
    with postgres_server(tmp_path) as victim:
        database = open_database(fresh_postgres_database(victim.url))
        survives_kills(database, victim)
        database.close()


def survives_kills(database: Database, victim: PostgresServer | None = None) -> None:
    """`victim` dies, or else the server of the page."""
    rows = [
        comparison(f"c{i}", response_a=f"First {i}.", response_b=f"Second, longer {i}.")
        for i in range(NUM_ITEMS)
    ]
    publish_rows(database, rows, check_every=7)
    with database.writing() as session:
        tokens = [invite(session, Role.annotator, START.replace(year=2100), None) for _ in range(4)]
    server = Server(database.engine.url.render_as_string(hide_password=False))
    server.start()
    done: list[int] = []
    killer = threading.Thread(target=_kill_again_and_again, args=(victim or server, database, done))
    killer.start()
    try:
        tallies = simulate(server.url, tokens, [Domain.helpfulness], AnnotatorSettings(), seed=1)
    finally:
        killer.join()
        server.kill()
    assert len(done) == NUM_KILLS
    assert max(done) < NUM_ITEMS, "a kill came when the work was done"
    acknowledged = [name for tally in tallies for name in tally.submission_ids]
    with database.reading() as session:
        entries = session.scalars(select(Entry)).all()
        slots = session.scalars(select(Slot)).all()
    kept = Counter(entry.submission_id for entry in entries)
    assert sum(tally.num_retries for tally in tallies) > 0, "no kill was noticed"
    assert set(acknowledged) <= set(kept)  # none lost
    assert set(kept.values()) == {1}  # none doubled
    labels = Counter(e.item_id for e in entries if e.purpose == SlotPurpose.collect)
    assert labels == dict.fromkeys(range(1, NUM_ITEMS + 1), 1)  # each item once, and all of them
    assert all(slot.state == "done" for slot in slots)


def _kill_again_and_again(
    victim: Server | PostgresServer, database: Database, done: list[int]
) -> None:
    """Each kill comes in the middle of the work, after another quarter of the labels; `done` is
    given how many items were labelled then."""
    for part in range(1, NUM_KILLS + 1):
        _wait_for_labels(database, part * NUM_ITEMS // (NUM_KILLS + 1))
        done.append(_num_labelled(database))
        if isinstance(victim, Server) and part == 1:
            victim.kill_serving()
            continue
        if isinstance(victim, Server) and part == 2:
            victim.kill_listening()
        else:
            victim.kill()
        victim.start()


def _num_labelled(database: Database) -> int:
    with database.reading() as session:
        collected = Entry.purpose == SlotPurpose.collect
        return session.scalar(select(func.count()).select_from(Entry).where(collected)) or 0


def _wait_for_labels(database, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with database.reading() as session:
            if len(session.scalars(select(Entry.id)).all()) >= count:
                return
        time.sleep(0.05)
    raise AssertionError("the annotators do not get on")


def test_a_database_opens_again_with_all_that_was_in_it(tmp_path):
    url = f"sqlite:///{tmp_path / 'annotation.db'}"
    for i in range(2):
        database = open_database(url)
        publish_rows(database, [comparison(f"c{i}")], week=i + 1)
        database.close()
    reopened = open_database(url)
    with reopened.reading() as session:
        assert len(session.scalars(select(Slot)).all()) == 2
    reopened.close()
