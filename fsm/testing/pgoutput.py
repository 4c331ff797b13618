"""Writes pgoutput messages, protocol version 1, text format: the other side of the decoder.

Each function returns a whole CopyData payload as bytes, XLogData header included, as a walsender
would send it. LSNs are ints, times aware datetimes. The format is that of the Postgres docs,
"Logical Replication Message Formats".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

from fsm.postgres.values import Unchanged

Value: TypeAlias = str | bytes | Unchanged | None
"""A column's text, its raw bytes, ``UNCHANGED``, or None for NULL."""

EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Where Postgres' clock begins."""


class ColumnSpec(NamedTuple):
    """A column of a Relation message."""

    name: str
    type_oid: int
    is_key: bool = False
    type_modifier: int = -1


def begin(commit_lsn: int, xid: int, commit_time: datetime = EPOCH, *, lsn: int = 0) -> bytes:
    """Begin of a transaction. ``lsn`` is the header's start LSN."""
    return _xlogdata(lsn, struct.pack(">cQqI", b"B", commit_lsn, _microseconds(commit_time), xid))


def commit(commit_lsn: int, end_lsn: int, commit_time: datetime = EPOCH) -> bytes:
    """Commit of a transaction; its header carries ``end_lsn``."""
    body = struct.pack(">cBQQq", b"C", 0, commit_lsn, end_lsn, _microseconds(commit_time))
    return _xlogdata(end_lsn, body)


def origin(commit_lsn: int, name: str) -> bytes:
    """Origin of a transaction."""
    return _xlogdata(0, struct.pack(">cQ", b"O", commit_lsn) + _string(name))


def message(lsn: int, prefix: str, content: bytes, *, transactional: bool = True) -> bytes:
    """What pg_logical_emit_message writes."""
    head = struct.pack(">cBQ", b"M", transactional, lsn)
    return _xlogdata(lsn, head + _string(prefix) + struct.pack(">I", len(content)) + content)


def type_(oid: int, name: str, schema: str = "") -> bytes:
    """Name of a type that is not built in; for a domain, of its base type (``""``: pg_catalog)."""
    return _xlogdata(0, struct.pack(">cI", b"Y", oid) + _string(schema) + _string(name))


def relation(
    oid: int,
    name: str,
    columns: Sequence[ColumnSpec],
    *,
    schema: str = "public",
    replica_identity: str = "d",
) -> bytes:
    """Description of a table."""
    parts = [
        struct.pack(">cI", b"R", oid),
        _string(schema),
        _string(name),
        replica_identity.encode("ascii"),
        struct.pack(">H", len(columns)),
    ]
    for column in columns:
        parts.append(struct.pack(">B", column.is_key))
        parts.append(_string(column.name))
        parts.append(struct.pack(">Ii", column.type_oid, column.type_modifier))
    return _xlogdata(0, b"".join(parts))


def insert(oid: int, values: Sequence[Value], *, lsn: int = 0) -> bytes:
    """Insert of one row: a value for each column of the relation."""
    return _xlogdata(lsn, struct.pack(">cI", b"I", oid) + _tuple(b"N", values))


def update(
    oid: int,
    values: Sequence[Value],
    *,
    old: Sequence[Value] | None = None,
    key: Sequence[Value] | None = None,
    lsn: int = 0,
) -> bytes:
    """Update of one row.

    Args:
        oid: OID of the relation.
        values: the new row.
        old: the old row, as with replica identity FULL.
        key: the old row with None for all columns outside the replica identity, as the server
            sends it where the key changed. At most one of ``old`` and ``key`` is given.
        lsn: start LSN.
    """
    head = struct.pack(">cI", b"U", oid)
    return _xlogdata(lsn, head + _old_tuple(old, key) + _tuple(b"N", values))


def delete(
    oid: int,
    *,
    old: Sequence[Value] | None = None,
    key: Sequence[Value] | None = None,
    lsn: int = 0,
) -> bytes:
    """Delete of one row; one of ``old`` and ``key`` is given, as in ``update``."""
    return _xlogdata(lsn, struct.pack(">cI", b"D", oid) + _old_tuple(old, key))


def truncate(
    oids: Sequence[int], *, cascade: bool = False, restart_identity: bool = False, lsn: int = 0
) -> bytes:
    """Truncate of tables."""
    head = struct.pack(">cIB", b"T", len(oids), cascade | restart_identity << 1)
    return _xlogdata(lsn, head + struct.pack(f">{len(oids)}I", *oids))


def keepalive(
    wal_end: int, *, reply_requested: bool = False, server_time: datetime = EPOCH
) -> bytes:
    """Primary keepalive message, which is no XLogData (docs, "Streaming Replication Protocol")."""
    return struct.pack(">cQqB", b"k", wal_end, _microseconds(server_time), reply_requested)


def _xlogdata(lsn: int, body: bytes) -> bytes:
    # A logical walsender gives one LSN as both start and end (WalSndPrepareWrite).
    return struct.pack(">cQQq", b"w", lsn, lsn, 0) + body


def _old_tuple(old: Sequence[Value] | None, key: Sequence[Value] | None) -> bytes:
    if old is not None:
        return _tuple(b"O", old)
    if key is not None:
        return _tuple(b"K", key)
    return b""


def _tuple(kind: bytes, values: Sequence[Value]) -> bytes:
    return kind + struct.pack(">H", len(values)) + b"".join(_column(value) for value in values)


def _column(value: Value) -> bytes:
    if value is None:
        return b"n"
    if isinstance(value, Unchanged):
        return b"u"
    data = value.encode() if isinstance(value, str) else value
    return b"t" + struct.pack(">I", len(data)) + data


def _string(text: str) -> bytes:
    return text.encode() + b"\0"


def _microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)
