"""Serve the page so that the death of a process that serves it is hardly noticed.

The process that listens has imported the application and forks the one that serves it. When that
one dies, by a kill -9 or for want of memory, the next is at work some milliseconds later: all is
imported, and the socket stays open meanwhile, so that requests wait in its queue and none is
refused. When the listening process dies, the serving one goes on for some seconds, in which it
hands the socket to the next `serve` of the same address (handover.py); then it ends.
"""

import errno
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import uvicorn

from annotation.web import handover
from data_contracts.errors import UserError

MakeApp = Callable[[], Any]
"""The ASGI application, with connections of its own: made in the process that serves."""

_KEEP_ALIVE_SECONDS = 75
"""uvicorn's 5 are what people think between two labels: a request that meets the closing of its
connection is lost, and the browser has to send it again."""
_LAST_ANSWERS_SECONDS = 10
"""For what was asked before the end; some bodies never come."""
_ENDING_SECONDS = 2.0
"""For a page that ends to leave the port: it answers first what it was asked."""
_CAME_UP_SECONDS = 5.0
_PAUSE_SECONDS = 1.0
"""Before the next, after one that did not live for as long: its database may be away."""


@dataclass
class Listener:
    """A socket that listens, perhaps taken over from a page that goes on until we serve."""

    listening: socket.socket
    predecessor: socket.socket | None = None

    def is_served(self) -> None:
        """From now on there are answers from here."""
        if self.predecessor:
            handover.is_served(self.predecessor)
            self.predecessor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.listening.close()
        if self.predecessor:
            self.predecessor.close()


def listen(host: str, port: int) -> Listener:
    """A socket that listens; raises UserError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = time.monotonic() + _ENDING_SECONDS
    while True:
        try:
            return Listener(socket.create_server((host, port), family=family, backlog=2048))
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                if taken := handover.take(host, port, family):
                    return Listener(*taken)
                time.sleep(0.05)
                continue
            raise UserError(
                f"The page cannot be served at {host}:{port}: {error.strerror}",
                "Choose another --port or --host, or end what listens there",
            ) from None


def serve(make_app: MakeApp, listener: Listener) -> None:
    """Serve until SIGTERM or SIGINT; whatever ends the serving process before, it comes back."""
    Forks(make_app, listener).run()


class Forks:
    """The serving process, and the next one."""

    def __init__(self, make_app: MakeApp, listener: Listener) -> None:
        self._make_app = make_app
        self._listener = listener
        self._child = 0
        self._is_asked_to_end = False
        self._their_end, self._our_end = os.pipe()
        """Open as long as this process is: by that the serving one knows that it is alone."""

    def run(self) -> None:
        """One after the other, until asked to end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        while not self._is_asked_to_end:
            began = time.monotonic()
            self._child = self._fork()
            if self._is_asked_to_end:  # while there was no child yet to pass it on to
                self._ask_child()
            os.waitpid(self._child, 0)
            self._child = 0  # its number may soon be another process's
            if not self._is_asked_to_end and time.monotonic() - began < _CAME_UP_SECONDS:
                time.sleep(_PAUSE_SECONDS)

    def _end(self, *_: object) -> None:
        self._is_asked_to_end = True
        self._ask_child()

    def _ask_child(self) -> None:
        if self._child:
            # else who comes now would wait for an answer until the last one has got his
            self._listener.listening.close()
            with suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)

    def _fork(self) -> int:
        child = os.fork()
        if child == 0:
            try:
                os.close(self._our_end)
                _serve_in_this_process(self._make_app, self._listener, self._their_end)
            except UserError as error:
                print(error, file=sys.stderr, flush=True)
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(0)  # whatever stands above us on the stack is the parent's to finish
        return child


def _serve_in_this_process(make_app: MakeApp, listener: Listener, parent: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # the parent's do what only the parent can do
    config = uvicorn.Config(
        make_app(),
        log_level="warning",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
    )
    server = uvicorn.Server(config)

    def outlive_the_parent() -> None:
        os.read(parent, 1)  # nothing is ever written: it ends when the other end does
        handover.offer(listener.listening)
        server.should_exit = True

    threading.Thread(target=outlive_the_parent, daemon=True).start()
    listener.is_served()
    server.run(sockets=[listener.listening])
