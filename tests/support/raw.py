"""A consumer that ignores the advisory lock: it takes the slot by START_REPLICATION alone."""

from __future__ import annotations

from typing import Self

from psycopg import pq
from psycopg.conninfo import make_conninfo


class RawHolder:
    """Streams a slot and reads nothing; its acknowledgements are what libpq does by itself: none.

    Args:
        dsn: where.
        slot: which slot.
        publication: of which publication.
    """

    def __init__(self, dsn: str, slot: str, publication: str) -> None:
        conninfo = make_conninfo(
            dsn,
            replication="database",
            application_name="etl",
            options="-c wal_sender_timeout=0",
        )
        self._connection = pq.PGconn.connect(conninfo.encode())
        command = (
            f"START_REPLICATION SLOT {slot} LOGICAL 0/0 "
            f"(proto_version '1', publication_names '{publication}')"
        )
        result = self._connection.exec_(command.encode())
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise RuntimeError(self._connection.error_message.decode())

    @property
    def pid(self) -> int:
        """Its walsender."""
        return self._connection.backend_pid

    def leave(self) -> None:
        """Let the slot go."""
        self._connection.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
