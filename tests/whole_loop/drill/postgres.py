"""A Postgres cluster of the drill's own on a free loopback port, and what `rlhf up` reads then."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from drill.ports import lasting_port
from drill.row import NotHere

_PLACES = ("/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/16/bin", "/usr/lib/postgresql/17/bin")
_START_SECONDS = 60.0


@contextmanager
def cluster(wanted: bool) -> Iterator[Mapping[str, str]]:
    """The variables that point Prefect and MLflow at databases of their own; none unless wanted.

    Raises NotHere where no Postgres server is installed, or nobody who may run it.
    """
    if not wanted:
        yield {}
        return
    programs, user = _programs(), _server_user()
    folder = Path(tempfile.mkdtemp(prefix="rlhf-pg-", dir="/tmp"))  # a socket's path must be short
    port = lasting_port()
    try:
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        run = {"user": user, "cwd": folder, "capture_output": True, "check": True}
        initdb = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(initdb, **run)
        options = (
            "listen_addresses=127.0.0.1",
            f"port={port}",
            f"unix_socket_directories={folder}",
        )
        command = [programs / "postgres", "-D", data, *(w for o in options for w in ("-c", o))]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=log)
        try:
            _await(programs / "pg_isready", port)
            for name in ("prefect", "mlflow"):
                create = ["createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", name]
                subprocess.run([programs / create[0], *create[1:]], **run)
            at = f"postgres@127.0.0.1:{port}"
            yield {
                "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{at}/prefect",
                "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://{at}/mlflow",
            }
        finally:
            server.terminate()
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    found = shutil.which("initdb", path=os.pathsep.join((os.environ["PATH"], *_PLACES)))
    if found is None:
        raise NotHere("no Postgres server is installed")
    return Path(found).resolve().parent


def _server_user() -> str | None:
    """Postgres refuses to run as root; None where we are somebody else."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in names:
            return name
    raise NotHere("Postgres cannot run as root, and there is no other user")


def _await(pg_isready: Path, port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    command = [pg_isready, "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(command, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, "Postgres did not start"
        time.sleep(0.1)
