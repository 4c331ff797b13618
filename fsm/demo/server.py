"""The demo's Postgres, in a folder that this process makes and removes.

It outlives a demo that was killed by just the time that cleaning up takes.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import psycopg

from fsm.demo.child import next_word, tell
from fsm.embedded import Postgres
from fsm.errors import SlotkeeperError

SLOT: Final = "orders"
PUBLICATION: Final = "orders"
LONGEST_FOLDER: Final = 60
"""Characters of a temporary folder in which the server's Unix socket still has room."""

_SET_UP: Final = (
    "CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item text NOT NULL)",
    "CREATE TABLE unpublished (id bigint PRIMARY KEY)",
    "CREATE PUBLICATION orders FOR TABLE orders",
    "SELECT pg_create_logical_replication_slot('orders', 'pgoutput')",
)
# The server looks a publication up when it decodes the next row of any table, not before.
_DROP: Final = ("DROP PUBLICATION orders", "INSERT INTO unpublished VALUES (1)")


def main() -> None:
    """Run the server until stdin ends."""
    # So that 'with' cleans up after this signal too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="slotkeeper-demo-", dir=_room()) as made:
        folder = Path(made).resolve()
        tell("folder", path=str(folder))
        try:
            with Postgres(folder=folder) as server:
                _execute(server, *_SET_UP)
                tell("ready", dsn=server.dsn(), version=server.version)
                _obey(server)
        except SlotkeeperError as error:
            tell("failed", text=str(error))
            raise SystemExit(1) from error


def _room() -> str | None:
    """Where the folder goes: None is the usual place."""
    return None if len(tempfile.gettempdir()) <= LONGEST_FOLDER else "/tmp"  # noqa: S108  (mkdtemp makes the name)


def _obey(server: Postgres) -> None:
    while (word := next_word()) is not None:
        match word:
            case "restart":
                server.restart("fast")
                tell("restarted")
            case "drop publication":
                _execute(server, *_DROP)
                tell("dropped")
            case "count":
                tell("counted", written=_count(server), ids=_ids(server))


def _execute(server: Postgres, *statements: Any) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def _count(server: Postgres) -> int:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("SELECT count(*) FROM orders").fetchone()
    return int(row[0]) if row else 0


def _ids(server: Postgres) -> list[int]:
    with psycopg.connect(server.dsn()) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM orders ORDER BY id")]


if __name__ == "__main__":
    main()
