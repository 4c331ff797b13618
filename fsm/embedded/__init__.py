"""A throw-away Postgres server, for the demo and for tests.

It takes the server's binaries from wherever they are already installed, runs one postmaster as a
direct child of this process, and leaves nothing behind: no process, no folder, no shared memory.
No server outlives this process, however it ends.

The server trusts every local user and does not fsync: never keep anything in it.
"""

from fsm.embedded.binaries import INSTALL, SYSTEM, find_binaries, unpack, version_of
from fsm.embedded.cluster import make_cluster
from fsm.embedded.errors import EmbeddedError
from fsm.embedded.ports import HOST, free_port
from fsm.embedded.server import Mode, Postgres
from fsm.embedded.settings import SETTINGS

__all__ = [
    "HOST",
    "INSTALL",
    "SETTINGS",
    "SYSTEM",
    "EmbeddedError",
    "Mode",
    "Postgres",
    "find_binaries",
    "free_port",
    "make_cluster",
    "unpack",
    "version_of",
]
