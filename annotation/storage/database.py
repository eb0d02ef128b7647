"""The connection to the annotation database: SQLite by default, Postgres by URL.

Every label that the service acknowledges is on the disk: SQLite runs in WAL mode with
synchronous=FULL (a commit waits for fsync), Postgres with synchronous_commit=on.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session

from annotation.storage.migrations import HEAD
from data_contracts.errors import UserError

DATABASE_VARIABLE = "RLHF_ANNOTATION_DATABASE"

_MIGRATION_LOCK = 0x524C4846  # "RLHF": one of Postgres's advisory locks
_BUSY_SECONDS = 30


class Database:
    """Short transactions on one database; safe to use from many threads and processes."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._turn = threading.Lock()
        self._for_writing = self.engine.execution_options(is_writing=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that changes nothing, over one consistent state."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that is on the disk when the block has ended well, else undone whole."""
        with (
            self._turn_to_write(),
            Session(self._for_writing, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def _turn_to_write(self) -> Iterator[None]:
        """SQLite has one writer at a time, and threads that poll for it starve each other: on a
        busy machine some waited for longer than the busy timeout. So they queue here."""
        if self.engine.dialect.name != "sqlite":
            yield
            return
        if not self._turn.acquire(timeout=_BUSY_SECONDS):
            raise OperationalError(
                "BEGIN IMMEDIATE", None, sqlite3.OperationalError("no turn came")
            )
        try:
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        """Give back every connection."""
        self.engine.dispose()


def open_database(url: str) -> Database:
    """The database of a URL, its schema brought up to date.

    Raises UserError when it cannot be reached or written.
    """
    database = Database(url)
    try:
        migrate(database)
    except DBAPIError as error:
        database.close()
        raise UserError(
            f"The annotation database cannot be opened: {error.orig}",
            "Check the address, the rights of this user, that the server runs, and that a file "
            "is an annotation database",
        ) from error
    return database


def home_database(folder: Path, url: str | None = None) -> Database:
    """The database that a URL, or else the environment, names; else the SQLite file of a folder.

    Raises as `open_database` does.
    """
    chosen = url or os.environ.get(DATABASE_VARIABLE)
    return open_database(chosen or sqlite_url(folder / "annotation.db"))


def sqlite_url(file: Path) -> str:
    """URL of a SQLite file; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{file.resolve()}"


def measure_queue(session: Session) -> None:
    """Have Postgres count the queue's tables, many of whose rows this transaction has written.

    Else it plans as if they were empty until its autovacuum has looked, a minute later or more:
    it then reads every item of a batch of 15,000 for one label (250 ms; 0.2 ms when it knows).
    """
    if session.get_bind().dialect.name == "postgresql":
        session.flush()
        session.execute(text("ANALYZE items, slots"))


def migrate(database: Database) -> None:
    """Apply the migrations that are missing; several servers may start at once."""
    with database._for_writing.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        if _revision(connection) != HEAD:
            _upgrade(connection)


def _revision(connection: Connection) -> str | None:
    """The schema's, as Alembic left it; None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(text("SELECT version_num FROM alembic_version"))


def _upgrade(connection: Connection) -> None:
    # Here and not above: Alembic is slow to import, and a server that starts again needs none.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise NoSuchModuleError
        if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise ArgumentError  # each connection would have a database of its own
        # 40 is the number of threads in which FastAPI runs synchronous routes
        engine = create_engine(parsed, pool_size=40, max_overflow=10, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        raise UserError(
            "The annotation database's URL is not one of sqlite:///FILE or postgresql://…",
            "Correct --database; Postgres needs the extra `postgres` (pip install "
            "'llama2-rlhf[postgres]')",
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin_sqlite`
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A read that turns into a write half way fails under WAL; so writers say so at the start.
    is_writing = connection.get_execution_options().get("is_writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")
