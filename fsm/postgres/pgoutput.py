"""pgoutput, protocol version 1, text format: wire -> messages.

The format is that of the Postgres docs, "Logical Replication Message Formats", and of the
``logicalrep_write_*`` functions of the server's proto.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias, cast

from fsm.errors import DecodeError
from fsm.postgres.changes import (
    HEADER,
    NULL,
    TEXT,
    TEXT_HEADER,
    TOASTED,
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Payload,
    Relation,
    ReplicaIdentity,
    Row,
    StreamMessage,
    Truncate,
    Update,
)
from fsm.postgres.values import TYPE_NAMES

__all__ = ["HEADER", "Begin", "Commit", "Decoder", "Message", "Origin", "Truncate"]

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)

_XLOGDATA: Final = ord("w")
_INSERT: Final = ord("I")
_UPDATE: Final = ord("U")
_DELETE: Final = ord("D")
_NEW: Final = ord("N")
_OLD: Final = ord("O")
_KEY: Final = ord("K")

# XLogData's tag and start LSN; then, after the message's tag, the relation's OID, the kind of the
# first tuple and its number of columns. One call reads what every change begins with.
_change_head = struct.Struct(">BQ16xxIBH").unpack_from
_FIRST_TUPLE: Final = HEADER + 5
_TUPLE_HEAD: Final = 3
_tuple_head = struct.Struct(">BH").unpack_from
_uint32 = struct.Struct(">I").unpack_from

_NAMES: Final = {
    "B": "Begin",
    "C": "Commit",
    "D": "Delete",
    "I": "Insert",
    "M": "Message",
    "O": "Origin",
    "R": "Relation",
    "T": "Truncate",
    "U": "Update",
    "Y": "Type",
}

_LATER_PROTOCOLS: Final = {
    "A": "Stream Abort",
    "E": "Stream Stop",
    "K": "Commit Prepared",
    "P": "Prepare",
    "S": "Stream Start",
    "b": "Begin Prepare",
    "c": "Stream Commit",
    "p": "Stream Prepare",
    "r": "Rollback Prepared",
}

_REPLICA_IDENTITIES: Final = "dnfi"
_CASCADE: Final = 1
_RESTART_IDENTITY: Final = 2


class _Fields:
    """Reads the fields of one message, in order. For the messages that are not rows."""

    def __init__(self, payload: Payload, name: str) -> None:
        self.name = name
        # Strings end at a zero byte, and only bytes can be searched for it.
        self._data = bytes(payload)
        self._at = HEADER + 1
        self._field = self._at
        self.start_lsn = int.from_bytes(self._data[1:9], "big")

    def refuse(self, problem: str) -> DecodeError:
        """Say what is wrong with the field read last."""
        return DecodeError(problem, message_name=self.name, offset=self._field)

    def integer(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "big", signed=signed)

    def take(self, size: int) -> bytes:
        self._field = self._at
        end = self._at + size
        if end > len(self._data):
            raise self.refuse(f"bytes due: {size}, bytes left: {len(self._data) - self._at}")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def string(self) -> str:
        self._field = self._at
        end = self._data.find(b"\0", self._at)
        if end < 0:
            raise self.refuse("a string does not end")
        try:
            text = self._data[self._at : end].decode()
        except UnicodeDecodeError:
            raise self.refuse("a string is no UTF-8") from None
        self._at = end + 1
        return text

    def flags(self, known: int) -> int:
        flags = self.integer(1)
        if flags & ~known:
            raise self.refuse(f"unknown flags {flags:#04x}")
        return flags

    def time(self) -> datetime:
        microseconds = self.integer(8, signed=True)
        try:
            return _EPOCH + timedelta(microseconds=microseconds)
        except OverflowError:
            raise self.refuse(f"{microseconds} microseconds is no time that can be") from None

    def end(self) -> None:
        self._field = self._at
        left = len(self._data) - self._at
        if left:
            raise self.refuse(f"bytes left over: {left}")


class Decoder:
    """Decodes the stream of ONE session: it remembers the relations and types sent on it.

    The server describes a relation before its first change and whenever it changed since, counted
    from the start of the stream: a new stream needs a new Decoder.
    """

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}
        self._types: dict[int, str] = {}

    def decode(self, payload: Payload) -> StreamMessage | None:
        """Decode one message.

        The shape of a row is checked here, its values are read when the host asks for them: the
        message keeps ``payload``, which must not change afterwards.

        Args:
            payload: one XLogData message as it came in CopyData: ``w``, start LSN, end LSN, server
                clock (25 bytes in all), then one pgoutput message.

        Returns:
            The message; None for Relation and Type, which are remembered.

        Raises:
            DecodeError: the payload does not follow the protocol. ``offset`` counts from the
                beginning of ``payload``. What was remembered before stays as it was.
        """
        try:
            tag = payload[HEADER]
            if tag == _INSERT:
                return self._insert(payload)
            if tag == _UPDATE:
                return self._update(payload)
            if tag == _DELETE:
                return self._delete(payload)
        except (IndexError, struct.error):
            raise _ends_early(payload) from None
        if payload[0] != _XLOGDATA:
            raise _no_xlogdata(payload)
        read = _READERS.get(tag)
        if read is None:
            raise _unknown(tag)
        return read(self, _Fields(payload, _NAMES[chr(tag)]))

    def _insert(self, payload: Payload) -> Insert:
        xlogdata, lsn, oid, kind, count = _change_head(payload)
        relation = self._relations.get(oid)
        if xlogdata != _XLOGDATA or relation is None or kind != _NEW:
            raise _bad_change(payload, relation, "N")
        offsets = _offsets(payload, _FIRST_TUPLE + _TUPLE_HEAD, count, relation)
        if offsets[-1] != len(payload):
            raise _bad_end(payload, offsets[-1])
        return Insert(relation, lsn, relation.row(payload, offsets))

    def _update(self, payload: Payload) -> Update:
        xlogdata, lsn, oid, kind, count = _change_head(payload)
        relation = self._relations.get(oid)
        if xlogdata != _XLOGDATA or relation is None or kind not in (_NEW, _OLD, _KEY):
            raise _bad_change(payload, relation, "N, O or K")
        offsets = _offsets(payload, _FIRST_TUPLE + _TUPLE_HEAD, count, relation)
        old: Row | None = None
        if kind != _NEW:
            old = _old_row(relation, kind, payload, offsets)
            start = offsets[-1]
            new_kind, count = _tuple_head(payload, start)
            if new_kind != _NEW:
                raise _bad_tuple_kind(payload, start, "N")
            offsets = _offsets(payload, start + _TUPLE_HEAD, count, relation)
        if offsets[-1] != len(payload):
            raise _bad_end(payload, offsets[-1])
        new = relation.row(payload, offsets)
        return Update(relation, lsn, new, old, old_is_key=kind == _KEY)

    def _delete(self, payload: Payload) -> Delete:
        xlogdata, lsn, oid, kind, count = _change_head(payload)
        relation = self._relations.get(oid)
        if xlogdata != _XLOGDATA or relation is None or kind not in (_OLD, _KEY):
            raise _bad_change(payload, relation, "O or K")
        offsets = _offsets(payload, _FIRST_TUPLE + _TUPLE_HEAD, count, relation)
        if offsets[-1] != len(payload):
            raise _bad_end(payload, offsets[-1])
        old = _old_row(relation, kind, payload, offsets)
        return Delete(relation, lsn, old, old_is_key=kind == _KEY)

    def _begin(self, fields: _Fields) -> Begin:
        begin = Begin(fields.integer(8), fields.time(), fields.integer(4))
        fields.end()
        return begin

    def _commit(self, fields: _Fields) -> Commit:
        fields.flags(known=0)
        commit = Commit(fields.integer(8), fields.integer(8), fields.time())
        fields.end()
        return commit

    def _origin(self, fields: _Fields) -> Origin:
        origin = Origin(fields.integer(8), fields.string())
        fields.end()
        return origin

    def _message(self, fields: _Fields) -> Message:
        transactional = bool(fields.flags(known=1))
        lsn = fields.integer(8)
        prefix = fields.string()
        content = fields.take(fields.integer(4))
        fields.end()
        return Message(lsn, transactional, prefix, content)

    def _truncate(self, fields: _Fields) -> Truncate:
        count = fields.integer(4)
        flags = fields.flags(known=_CASCADE | _RESTART_IDENTITY)
        oids = struct.unpack(f">{count}I", fields.take(4 * count)) if count else ()
        unknown = [oid for oid in oids if oid not in self._relations]
        if unknown:
            raise fields.refuse(f"relation {unknown[0]} was not described before")
        fields.end()
        return Truncate(
            tuple(self._relations[oid] for oid in oids),
            cascade=bool(flags & _CASCADE),
            restart_identity=bool(flags & _RESTART_IDENTITY),
            lsn=fields.start_lsn,
        )

    def _relation(self, fields: _Fields) -> None:
        oid = fields.integer(4)
        schema = fields.string() or "pg_catalog"
        name = fields.string()
        identity = chr(fields.integer(1))
        if identity not in _REPLICA_IDENTITIES:
            raise fields.refuse(f"unknown replica identity {identity!r}")
        columns = tuple(self._column(fields) for _ in range(fields.integer(2)))
        fields.end()
        if len({column.name for column in columns}) < len(columns):
            raise fields.refuse("two columns have one name")
        self._relations[oid] = Relation(
            oid, schema, name, cast("ReplicaIdentity", identity), columns
        )

    def _column(self, fields: _Fields) -> Column:
        is_key = bool(fields.flags(known=1))
        name = fields.string()
        type_oid = fields.integer(4)
        type_modifier = fields.integer(4, signed=True)
        return Column(name, type_oid, type_modifier, is_key, self._type_name(type_oid))

    def _type_name(self, oid: int) -> str:
        return TYPE_NAMES.get(oid) or self._types.get(oid) or f"oid {oid}"

    def _type(self, fields: _Fields) -> None:
        oid = fields.integer(4)
        # Empty stands for pg_catalog: a type of one's own never has it, a domain over a built-in
        # type does, because the server sends the name of its base type (logicalrep_write_typ).
        schema = fields.string()
        name = fields.string()
        fields.end()
        self._types[oid] = f"{schema}.{name}" if schema else name


_Reader: TypeAlias = Callable[[Decoder, _Fields], StreamMessage | None]

# Reading its own methods by name is what a table of them is for.
_READERS: Final[dict[int, _Reader]] = {
    ord("B"): Decoder._begin,  # noqa: SLF001 -- the class's own table
    ord("C"): Decoder._commit,  # noqa: SLF001
    ord("M"): Decoder._message,  # noqa: SLF001
    ord("O"): Decoder._origin,  # noqa: SLF001
    ord("R"): Decoder._relation,  # noqa: SLF001
    ord("T"): Decoder._truncate,  # noqa: SLF001
    ord("Y"): Decoder._type,  # noqa: SLF001
}


def _offsets(payload: Payload, start: int, count: int, relation: Relation) -> list[int]:
    """Find where each column of a tuple begins; the last offset is the tuple's end.

    A length that leads out of the payload shows as IndexError or struct.error at the next column,
    or as an end that is not where the caller expects it.
    """
    if count != len(relation.columns):
        raise _bad_count(payload, start, count, relation)
    at = start
    offsets = [at]
    for _ in relation.columns:
        kind = payload[at]
        if kind == TEXT:
            (size,) = _uint32(payload, at + 1)
            at += TEXT_HEADER + size
        elif kind in (NULL, TOASTED):
            at += 1
        else:
            raise _bad_column_kind(payload, at, relation, len(offsets) - 1)
        offsets.append(at)
    return offsets


def _old_row(relation: Relation, kind: int, payload: Payload, offsets: list[int]) -> Row:
    if kind == _KEY:
        return relation.key_row(payload, offsets)
    return relation.row(payload, offsets)


def _name_of(payload: Payload) -> str:
    return _NAMES.get(chr(payload[HEADER]), "Unknown")


def _ends_early(payload: Payload) -> DecodeError:
    size = len(payload)
    if size and payload[0] != _XLOGDATA:
        return _no_xlogdata(payload)
    if size <= HEADER:
        return DecodeError(
            f"{size} bytes are too few: a header of {HEADER} bytes and a message are due",
            message_name="XLogData",
            offset=size,
        )
    return DecodeError("it ends early", message_name=_name_of(payload), offset=size)


def _no_xlogdata(payload: Payload) -> DecodeError:
    return DecodeError(
        f"it begins with {_shown(payload[0])}, where 'w' is due", message_name="XLogData", offset=0
    )


def _unknown(tag: int) -> DecodeError:
    later = _LATER_PROTOCOLS.get(chr(tag))
    if later is None:
        return DecodeError(
            f"{_shown(tag)} is no message of pgoutput", message_name="Unknown", offset=HEADER
        )
    return DecodeError(
        f"tag {_shown(tag)} belongs to protocol version 2 or later, and version 1 was asked for",
        message_name=later,
        offset=HEADER,
    )


def _bad_change(payload: Payload, relation: Relation | None, kinds: str) -> DecodeError:
    if payload[0] != _XLOGDATA:
        return _no_xlogdata(payload)
    if relation is None:
        (oid,) = _uint32(payload, HEADER + 1)
        return DecodeError(
            f"relation {oid} was not described before",
            message_name=_name_of(payload),
            offset=HEADER + 1,
        )
    return _bad_tuple_kind(payload, HEADER + 5, kinds)


def _bad_tuple_kind(payload: Payload, at: int, kinds: str) -> DecodeError:
    return DecodeError(
        f"a tuple of kind {_shown(payload[at])}, where {kinds} is due",
        message_name=_name_of(payload),
        offset=at,
    )


def _bad_count(payload: Payload, at: int, count: int, relation: Relation) -> DecodeError:
    return DecodeError(
        f"a tuple of {count} columns, where {relation.table} has {len(relation.columns)}",
        message_name=_name_of(payload),
        offset=at - 2,
    )


def _bad_column_kind(payload: Payload, at: int, relation: Relation, position: int) -> DecodeError:
    kind = payload[at]
    what = "in binary, which was not asked for" if kind == ord("b") else f"as {_shown(kind)}"
    return DecodeError(
        f"column {relation.columns[position].name!r} of {relation.table} came {what}",
        message_name=_name_of(payload),
        offset=at,
    )


def _bad_end(payload: Payload, end: int) -> DecodeError:
    left = len(payload) - end
    if left < 0:
        return DecodeError(
            f"bytes missing from its last column: {-left}",
            message_name=_name_of(payload),
            offset=len(payload),
        )
    return DecodeError(f"bytes left over: {left}", message_name=_name_of(payload), offset=end)


def _shown(byte: int) -> str:
    return repr(bytes((byte,)))[1:]
