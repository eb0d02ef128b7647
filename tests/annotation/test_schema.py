"""The migrations make exactly the tables of the code."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from annotation.storage import migrations
from annotation.storage.database import migrate, open_database
from annotation.storage.migrations import HEAD
from annotation.storage.schema import Base
from data_contracts.errors import UserError


def test_the_head_that_the_code_names_is_the_newest_migration():
    """Else a database that lacks one would be opened as it is."""
    assert ScriptDirectory(str(Path(migrations.__file__).parent)).get_heads() == [HEAD]


def test_the_migrations_and_the_code_agree(any_database):
    migrate(any_database)  # again: nothing to do
    with any_database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_sqlite_waits_for_the_disk(database):
    with database.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL


@pytest.mark.parametrize(
    "url",
    [
        "mysql://localhost/x",
        "no url at all",
        "sqlite:////proc/nowhere/annotation.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "postgresql://host:port/x",
    ],
)
def test_a_database_that_cannot_be_used_is_a_user_error(url):
    with pytest.raises(UserError, match="annotation database"):
        open_database(url)


def test_a_file_that_is_no_database_is_a_user_error(tmp_path):
    file = tmp_path / "notes.md"
    file.write_text("# Notes\n" * 1000)
    with pytest.raises(UserError, match="file is not a database"):
        open_database(f"sqlite:///{file}")
    assert file.read_text() == "# Notes\n" * 1000
