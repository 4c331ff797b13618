"""A TCP port for a server."""

from __future__ import annotations

import contextlib
import secrets
import socket

HOST = "127.0.0.1"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on at this moment.

    It lies below the ports that the kernel gives to outgoing connections: a client that tries
    such a port while the server is down may be connected to itself.
    """
    while True:
        port = 15_000 + secrets.randbelow(17_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
