"""A fresh database and an application for every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from annotation_postgres import fresh_postgres_database, postgres_server
from annotation_world import Clock
from argon2 import PasswordHasher
from fastapi import FastAPI

from annotation import accounts
from annotation.settings import AnnotationSettings
from annotation.storage.database import Database, open_database, sqlite_url
from annotation.web.app import create_app
from annotation.web.visitors import Service


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2 as it is, at a hundredth of the price: tests log in many times."""
    hasher = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
    monkeypatch.setattr(accounts, "_hasher", hasher)
    monkeypatch.setattr(accounts, "_NOBODY", hasher.hash("nobody"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(sqlite_url(tmp_path / "annotation.db"))
    yield opened
    opened.close()


@pytest.fixture
def service(database: Database, clock: Clock) -> Service:
    return Service(database, AnnotationSettings(), clock)


@pytest.fixture
def app(service: Service) -> FastAPI:
    return create_app(service)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Postgres server of our own, where its programs are installed."""
    with postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server.url


@pytest.fixture(params=["sqlite", "postgresql"])
def any_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The same test on both databases."""
    if request.param == "sqlite":
        url = sqlite_url(tmp_path / "annotation.db")
    else:
        url = fresh_postgres_database(request.getfixturevalue("postgres_url"))
    opened = open_database(url)
    yield opened
    opened.close()
