"""Alembic's versions of the database schema."""
