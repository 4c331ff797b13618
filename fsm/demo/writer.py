"""The demo's writer: rows into the published table, a transaction each, over any restart."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import psycopg

from fsm.demo.child import options, tell, told_to_end

PAUSE: Final = 0.02
"""Seconds between two transactions."""
RETRY: Final = 0.2
"""Seconds until a server that went away is tried again."""
TOLD_EVERY: Final = 10
"""Rows from one message to the next."""


def main() -> None:
    """Write until stdin says or ends."""
    writer = _Writer(options()["dsn"])
    while not told_to_end(RETRY):
        # A restart ends the connection. What is counted in the end is what the table holds.
        with suppress(psycopg.OperationalError):
            if writer.write_until_told():
                break
    tell("stopped")


class _Writer:
    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._written = 0

    def write_until_told(self) -> bool:
        """Write; True where it is to end."""
        with psycopg.connect(self._dsn, autocommit=True, application_name="writer") as connection:
            while not told_to_end(PAUSE):
                connection.execute("INSERT INTO orders (item) VALUES ('tea')")
                self._written += 1
                if self._written % TOLD_EVERY == 0:
                    tell("written", rows=self._written)
        return True


if __name__ == "__main__":
    main()
