"""A page whose listening process was killed goes on for a moment, and hands its socket on.

Whoever starts the page again needs a second to import it, and the port is still taken by the
process that serves. That one therefore waits at a door, an abstract Unix socket named after the
address: the successor takes the listening socket there, and both serve until it says that it does.
Nobody is refused meanwhile. Only processes of the same user are let in, on either side.
"""

import os
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any

SECONDS = 5.0
"""For a successor to come: a supervisor's pause, or that of whoever types the command again."""
_AT_THE_DOOR_SECONDS = 1.0
_SERVES = b"s"
_SOCKET_FOLLOWS = b"l"
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""

HAS_DOORS = sys.platform == "linux"
"""Abstract Unix sockets, which leave no file behind, and the credentials of who is at the other
end. Elsewhere a page ends with the process that listens."""


def offer(listener: socket.socket) -> None:
    """Return when a successor serves on `listener`, or when none has come for some seconds."""
    if not HAS_DOORS:
        return
    deadline = time.monotonic() + SECONDS
    with socket.socket(socket.AF_UNIX) as door, suppress(OSError):  # TimeoutError is one
        door.bind(_name(listener.getsockname()))
        door.listen()
        while (left := deadline - time.monotonic()) > 0:
            door.settimeout(left)
            successor, _ = door.accept()
            with successor:
                if _is_ours(successor) and _gave(listener, successor):
                    return


def _gave(listener: socket.socket, successor: socket.socket) -> bool:
    """Whether the successor serves; if it has died on the way, the next one may come."""
    successor.settimeout(None)  # to import may take it long, and its death ends the connection
    try:
        socket.send_fds(successor, [_SOCKET_FOLLOWS], [listener.fileno()])
        return successor.recv(1) == _SERVES
    except OSError:
        return False


def take(host: str, port: int, family: int) -> tuple[socket.socket, socket.socket] | None:
    """The socket that a page without its listening process still has, and whom to tell.

    None where there is no such page. `is_served` tells it. "" is every address, as in `bind`.
    """
    if not HAS_DOORS:
        return None
    (*_, address), *_ = socket.getaddrinfo(
        host or None, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    predecessor = socket.socket(socket.AF_UNIX)
    predecessor.settimeout(_AT_THE_DOOR_SECONDS)  # another may be there before us
    with suppress(OSError):  # nobody is at the door, or it goes away meanwhile
        predecessor.connect(_name(address))
        if _is_ours(predecessor):
            _, sockets, *_ = socket.recv_fds(predecessor, len(_SOCKET_FOLLOWS), maxfds=1)
            if sockets:
                return socket.socket(fileno=sockets[0]), predecessor
    predecessor.close()
    return None


def is_served(predecessor: socket.socket) -> None:
    """Let the page that handed its socket on end."""
    with predecessor, suppress(OSError):  # it may have ended already
        predecessor.send(_SERVES)


def _name(address: tuple[Any, ...]) -> str:
    """Of the door; the first zero byte makes it an abstract one. IPv6 has four parts, not two."""
    return f"\0llama2-rlhf-annotation {address[0]} {address[1]}"


def _is_ours(connection: socket.socket) -> bool:
    """Whether a process of the same user is at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(credentials)[1] == os.getuid()
