"""The built-in Prefect server: used when PREFECT_API_URL names none, gone with its process.

Prefect would start one by itself, but that one outlives a `kill -9` of the run and keeps the
database open; here the kernel ends the server with the process that started it. Run as a program
this module is the server:

    python -m flows.server PARENT_PID PORT
"""

import atexit
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_contracts.durable import disk_full, existing
from data_contracts.errors import UserError
from flows.environment import Places
from flows.standing import state
from flows.standing.addresses import CLIENT_SECRET_VARIABLE
from stages.runtime.supervisor import die_with_parent

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Any, Any, Send], Awaitable[None]]
"""ASGI: scope, receive, send."""

API_URL_VARIABLE = "PREFECT_API_URL"
_HOST = "127.0.0.1"
_START_SECONDS = 120.0
"""A busy machine needs longer than the 20 s that Prefect gives its own."""
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 15.0
"""How long a user's server may take to answer: it may just be starting."""
_FULL_BELOW_BYTES = 2**20
_BUSY_STATUS = 503
_RETRY_SECONDS = b"0.2"
_REFUSALS = (401, 403)
_NO_API = "Failed to reach API at "
_OTHER_VERSION = "Found incompatible versions: "
"""How the RuntimeErrors of Prefect's client begin when it asks a server for its version."""


@dataclass(frozen=True)
class Api:
    """A Prefect API that may still be starting."""

    url: str
    place: str
    """What to tell a user who looks for it: the URL, or the path of the built-in's database."""
    process: subprocess.Popen[bytes] | None = None
    """The built-in server; None for one that is not ours."""
    log: Path | None = None

    def wait(self) -> None:
        """Return when it answers.

        Raises UserError when the built-in does not start, or the user's does not answer.
        """
        if self.process is None or self.log is None:
            _wait_for_users(self.url)
        else:
            _wait_until_healthy(self.url, self.process, self.log)


def begin_api(where: Places) -> Api:
    """The user's API, or the one that `rlhf up` keeps for this home, or a server on this home's
    database until we exit, which is being started.

    Call it before anything imports prefect, which reads the address once, and `wait` after: the
    import and the server's start take seconds each, and go on side by side.
    """
    given = os.environ.get(API_URL_VARIABLE)
    servers = state.read(where)
    if not given or (servers is not None and given == f"{servers.prefect}/api"):
        given = use_standing(where)  # their MLflow, too
    if given:
        return Api(given, given)
    log = where.prefect_home / "server.log"
    port = _free_port()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(os.getpid()), str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is ours; the flow still reports how it ended
        )
    # registered before prefect's own handlers, so it runs after they have sent the last logs
    atexit.register(_stop, process)
    os.environ[API_URL_VARIABLE] = f"http://{_HOST}:{port}/api"
    return Api(os.environ[API_URL_VARIABLE], str(where.prefect_home / "prefect.db"), process, log)


def use_standing(where: Places) -> str | None:
    """The API of the servers that `rlhf up` keeps for this home, if it does.

    From now on this process reports to them, and to their MLflow: its database may be another than
    the home's own.
    """
    servers = state.read(where)
    if servers is None or not servers.ready:
        return None
    os.environ.setdefault("MLFLOW_TRACKING_URI", servers.mlflow)
    os.environ[API_URL_VARIABLE] = f"{servers.prefect}/api"
    return os.environ[API_URL_VARIABLE]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return probe.getsockname()[1]


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(url):
            return
        time.sleep(_POLL_SECONDS)
    _stop(process)
    if is_full(log):
        raise disk_full("write Prefect's database in", log.parent)
    raise UserError(
        f"The built-in Prefect server did not start; its log is {log}",
        "Free some memory, or point PREFECT_API_URL at a server that runs",
    )


def _wait_for_users(url: str) -> None:
    deadline = time.monotonic() + _ANSWER_SECONDS
    while not _answers(url):
        if time.monotonic() > deadline:
            raise _unreachable(url)
        time.sleep(_POLL_SECONDS)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=_STOP_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # what it says against us, Prefect's client tells better
    except OSError:
        return False


def is_full(path: Path) -> bool:
    """Whether a server that failed did so for want of space: it is another process, all we see is
    that it could not, and its log is on the same disk."""
    return shutil.disk_usage(existing(path)).free < _FULL_BELOW_BYTES


@contextmanager
def server_errors_explained(where: Places) -> Iterator[None]:
    """One paragraph for a Prefect server that is gone, that refuses us, that is none, or that
    cannot write its database. What the flow's own code raises goes on as it is.

    The server is asked for its version first: any later answer of what is no Prefect would end in
    whatever error the client meets while it reads it.
    """
    from httpx import HTTPStatusError, TransportError
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch_once()
        yield
    except (HTTPStatusError, TransportError, RuntimeError) as error:
        explained = _explained(error, os.environ[API_URL_VARIABLE], where)
        if explained is None:
            raise
        raise explained from error


def _explained(error: Exception, url: str, where: Places) -> UserError | None:
    """The paragraph for an error that the server at `url` is behind; None for any other."""
    from httpx import URL, HTTPStatusError, TransportError

    if str(error).startswith(_OTHER_VERSION):
        return UserError(
            f"The Prefect server at {url} is another Prefect: {error}", "Install one for both"
        )
    is_first_question = isinstance(error, RuntimeError)
    if is_first_question and not str(error).startswith(_NO_API):
        return None
    cause = error.__cause__ if is_first_question else error
    status = None
    if isinstance(cause, HTTPStatusError):
        if cause.request.url.netloc != URL(url).netloc:
            return None
        status = cause.response.status_code
    if status in _REFUSALS:
        return _refused(url)
    if is_full(where.prefect_home):
        return disk_full("write Prefect's database in", where.prefect_home)
    if isinstance(cause, TransportError):
        return _unreachable(url)
    if is_first_question:
        answer = "something else" if status is None else str(status)
        return UserError(
            f"There is no Prefect API at {url}: it answered {answer} when asked for its version",
            f"Set {API_URL_VARIABLE} to http://HOST:PORT/api of a Prefect server, or unset it",
        )
    return UserError(
        f"The Prefect server at {url} fails: {cause}",
        "Look into its log, mend that, and run the same command again: what is finished is reused",
    )


def _refused(url: str) -> UserError:
    return UserError(
        f"The Prefect server at {url} asks for a name and a password, and does not take what "
        f"{CLIENT_SECRET_VARIABLE} says",
        f"Set {CLIENT_SECRET_VARIABLE} to the name:password that the server was started with "
        "(its PREFECT_SERVER_API_AUTH_STRING)",
    )


def _unreachable(url: str) -> UserError:
    return UserError(
        f"The Prefect server at {url} does not answer",
        f"Start it, or unset {API_URL_VARIABLE} to use the built-in one, and run the same command "
        "again: what is finished is reused",
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(port: int) -> None:
    """Serve Prefect's API without its page until the process is ended."""
    import uvicorn
    from prefect.server.api.server import create_app

    app = retry_soon(create_app(ephemeral=True, final=True))
    uvicorn.run(app, host=_HOST, port=port, log_level="error", lifespan="on")


def retry_soon(app: Application) -> Application:
    """Say with every refusal for a busy database that it is over in a moment.

    SQLite refuses a transaction that read before another one wrote, at once and several times in
    each run, and Prefect's client waits 2 s where it is not told for how long.
    """

    async def answer(scope: Any, receive: Any, send: Send) -> None:
        async def send_with_header(message: MutableMapping[str, Any]) -> None:
            if message.get("status") == _BUSY_STATUS and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"retry-after", _RETRY_SECONDS)]
            await send(message)

        await app(scope, receive, send_with_header)

    return answer


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    serve(int(sys.argv[2]))
