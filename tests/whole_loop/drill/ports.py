"""Ports of loopback for servers that are killed and come back to the same ones."""

import random
import socket
from contextlib import suppress

_BELOW_THE_KERNELS = range(20_000, 32_000)
"""From 32768 on the kernel gives ports to outgoing connections: it would take ours meanwhile."""


def lasting_port() -> int:
    """A port that nobody listens on, and that the kernel gives to nobody."""
    while True:
        port = random.choice(_BELOW_THE_KERNELS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
