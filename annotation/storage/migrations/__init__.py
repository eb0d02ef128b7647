"""Alembic's versions of the database schema."""

HEAD = "1"
"""The newest: a database that has it is opened without Alembic."""
