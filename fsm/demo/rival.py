"""A consumer that ignores the advisory lock: it throws the holder out and takes the slot.

It reads nothing and confirms nothing, so the slot stays where it was.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from psycopg import pq
from psycopg.conninfo import make_conninfo

from fsm.demo.child import next_word, options, tell
from fsm.demo.server import PUBLICATION, SLOT

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

PATIENCE: Final = 10.0
"""Seconds in which it must have the slot."""
ROUND: Final = 0.2
"""Seconds of trying until whoever holds the slot then is thrown out once more."""
_SLOT_IN_USE: Final = b"55006"

_THROW_OUT: Final = f"""
    SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
    WHERE slot_name = '{SLOT}' AND active_pid IS NOT NULL
"""
_START: Final = (
    f"START_REPLICATION SLOT {SLOT} LOGICAL 0/0 "
    f"(proto_version '1', publication_names '{PUBLICATION}')"
)


def main() -> None:
    """Take the slot, hold it until told, and let it go."""
    dsn = options()["dsn"]
    walsender = _connect(
        dsn,
        replication="database",
        application_name="rival",
        options="-c wal_sender_timeout=0",  # it never replies
    )
    _seize(walsender, _connect(dsn, application_name="rival"))
    tell("holding", pid=walsender.backend_pid)
    next_word()
    walsender.finish()
    tell("left")


def _connect(dsn: str, **parameters: str) -> PGconn:
    connection = pq.PGconn.connect(make_conninfo(dsn, **parameters).encode())
    if connection.status != pq.ConnStatus.OK:
        raise SystemExit(connection.get_error_message())
    return connection


def _seize(walsender: PGconn, admin: PGconn) -> None:
    """Be quicker than the keeper that waits for the lock: it has more to ask before its START."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        admin.exec_(_THROW_OUT.encode())
        if _start_within(walsender, ROUND):
            admin.finish()
            return
    raise SystemExit(f"the slot was not to be had within {PATIENCE:g} s")


def _start_within(walsender: PGconn, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = walsender.exec_(_START.encode())
        if result.status == pq.ExecStatus.COPY_BOTH:
            return True
        if result.error_field(pq.DiagnosticField.SQLSTATE) != _SLOT_IN_USE:
            raise SystemExit(result.get_error_message())
    return False


if __name__ == "__main__":
    main()
