"""A throw-away Postgres server on a socket in a folder, run as a user that is not root."""

import os
import pwd
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from annotation_server import children_of
from sqlalchemy import create_engine, text

_START_SECONDS = 60


class PostgresServer:
    """One data folder on which the server runs, dies and runs again."""

    def __init__(self, program: str, home: Path, user: str | None) -> None:
        self._command = [program, "-D", str(home / "data"), "-c", "listen_addresses="]
        self._command += ["-c", f"unix_socket_directories={home}"]
        self._place = {"user": user, "cwd": home}
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql+psycopg://postgres@/postgres?host={home}"

    def start(self) -> None:
        """Until it answers, after recovery where it was killed."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(self._command, **self._place, **quiet)
        _wait_for(self.url)

    def kill(self) -> None:
        """kill -9 of the server and of every process that it has for a connection."""
        assert self._process is not None
        children = children_of(self._process.pid)
        self._process.kill()
        self._process.wait(30)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def stop(self) -> None:
        """In good order."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)


@contextmanager
def postgres_server(folder: Path) -> Iterator[PostgresServer]:
    """A server that runs; skips the test where there is no server program."""
    programs = _programs()
    user = _server_user()
    home = folder if user is None else _folder_for(user)
    make = [programs["initdb"], "-D", home / "data", "-U", "postgres", "-A", "trust", "--no-sync"]
    try:
        subprocess.run(make, user=user, cwd=home, check=True, capture_output=True)
        server = PostgresServer(programs["postgres"], home, user)
        try:
            server.start()
            yield server
        finally:
            server.stop()
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
