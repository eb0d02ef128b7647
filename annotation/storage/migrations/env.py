"""Alembic's entry: runs the migrations over the connection that `database.migrate` holds."""

from alembic import context

from annotation.storage.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter most of a table in place
    transactional_ddl=False,  # the caller's transaction holds everything
)
context.run_migrations()
