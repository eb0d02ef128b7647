"""A database that cannot be used is said so, acknowledges nothing, and takes it all later."""

import logging
from pathlib import Path

import pytest
from annotation_world import browser, comparisons, publish_rows
from sqlalchemy import event, select

from annotation.storage.schema import Entry


@pytest.fixture
def locked(database):
    """A function that locks the database against writing until it is called again."""

    @event.listens_for(database.engine, "connect")
    def _be_impatient(connection, _record) -> None:
        connection.execute("PRAGMA busy_timeout=20")

    database.engine.dispose()
    holder = None

    def toggle() -> None:
        nonlocal holder
        if holder is None:
            holder = database.engine.raw_connection()
            holder.execute("BEGIN IMMEDIATE")
        else:
            holder.rollback()
            holder.close()
            holder = None

    return toggle


def test_a_label_is_not_acknowledged_and_goes_through_later(service, app, locked, caplog):
    publish_rows(service.database, comparisons(2))
    ann = browser(service, app, "ann")
    page = ann.open()
    locked()
    with caplog.at_level(logging.ERROR):
        reply = ann.label(page)
    assert reply.status_code == 503
    assert "cannot use its database now" in reply.text
    assert "database is locked" in caplog.text
    assert "Content-Security-Policy" in reply.headers
    locked()
    assert ann.label(page).status_code == 200
    with service.database.reading() as session:
        assert len(session.scalars(select(Entry)).all()) == 1


def test_a_damaged_file_is_said_so(service, app, caplog):
    publish_rows(service.database, comparisons(2))
    ann = browser(service, app, "ann")
    page = ann.open()
    service.database.engine.dispose()
    file = Path(service.database.engine.url.database)
    for name in (f"{file}-wal", f"{file}-shm"):
        Path(name).unlink(missing_ok=True)
    file.write_bytes(b"no database " * 1000)
    with caplog.at_level(logging.ERROR):
        assert ann.label(page).status_code == 503
    assert "not a database" in caplog.text
