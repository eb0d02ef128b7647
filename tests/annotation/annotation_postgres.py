"""A throw-away Postgres server on a socket in a folder, run as a user that is not root."""

import os
import pwd
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

_START_SECONDS = 60


@contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """URL of its database postgres; skips the test where there is no server program."""
    programs = _programs()
    user = _server_user()
    home = folder if user is None else _folder_for(user)
    data = home / "data"
    run = {"user": user, "cwd": home, "check": True, "capture_output": True}
    try:
        subprocess.run(
            [programs["initdb"], "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"], **run
        )
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={home}"]
        server = subprocess.Popen(
            [programs["postgres"], "-D", data, *options],
            user=user,
            cwd=home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"postgresql+psycopg://postgres@/postgres?host={home}"
        try:
            _wait_for(url)
            yield url
        finally:
            server.terminate()
            server.wait(30)
    finally:
        if user is not None:
            shutil.rmtree(home, ignore_errors=True)


def fresh_postgres_database(url: str) -> str:
    """URL of an empty database on the server."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url.replace("/postgres?", f"/{name}?")


def _programs() -> dict[str, str]:
    found = {name: shutil.which(name) for name in ("initdb", "postgres")}
    if None in found.values():
        pytest.skip("no Postgres server is installed")
    pytest.importorskip("psycopg")
    return {name: path for name, path in found.items() if path}


def _server_user() -> str | None:
    """Postgres refuses to run as root; None where we are somebody else."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = next((name for name in ("postgres", "nobody") if name in names), None)
    return user or pytest.skip("Postgres cannot run as root, and there is no other user")


def _folder_for(user: str) -> Path:
    # pytest's own folders are open to root alone, and a socket's path must be short
    home = Path("/tmp") / f"pg-{uuid.uuid4().hex[:8]}"
    home.mkdir(mode=0o700)
    shutil.chown(home, user)
    return home


def _wait_for(url: str) -> None:
    engine = create_engine(url)
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with engine.connect():
                break
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    engine.dispose()
