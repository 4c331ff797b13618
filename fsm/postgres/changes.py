"""What the host sees: the messages of a stream, and the rows in them.

Everything here is to be read, not written to. A row keeps the bytes that the server sent and
converts a column when it is read, every time it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeAlias

from fsm.errors import DecodeError
from fsm.postgres.lsn import format_lsn
from fsm.postgres.values import UNCHANGED, Converter, Unchanged, converter_for, jsonable

__all__ = [
    "HEADER",
    "UNCHANGED",
    "Begin",
    "Change",
    "Column",
    "Commit",
    "Delete",
    "Insert",
    "Message",
    "Origin",
    "Payload",
    "Relation",
    "Row",
    "StreamMessage",
    "Truncate",
    "Update",
]

Payload: TypeAlias = bytes | memoryview
"""One CopyData payload, header included."""

Kind: TypeAlias = Literal["insert", "update", "delete"]

ReplicaIdentity: TypeAlias = Literal["d", "n", "f", "i"]
"""What identifies an old row: default (the primary key), nothing, the full row, an index
(pg_class.relreplident)."""

HEADER: Final = 25
"""Bytes of an XLogData message before the output plugin's own: ``w``, start LSN, end LSN, clock
(Postgres docs, "Streaming Replication Protocol", XLogData)."""

TEXT: Final = ord("t")
"""Column kind: four bytes of length and the text."""
NULL: Final = ord("n")
"""Column kind: NULL."""
TOASTED: Final = ord("u")
"""Column kind: an unchanged TOASTed value, which is not sent."""
TEXT_HEADER: Final = 5
"""Bytes of a text column before its text: the kind and the length."""

_ROW_MESSAGES: Final = {ord("I"): "Insert", ord("U"): "Update", ord("D"): "Delete"}
_SHOWN: Final = 40


@dataclass(frozen=True, slots=True)
class Begin:
    """A transaction begins.

    Attributes:
        commit_lsn: LSN of its commit record.
        commit_time: when it was committed, aware, in UTC.
        xid: its transaction id, 32 bits, without the epoch.
    """

    commit_lsn: int
    commit_time: datetime
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction is complete.

    Attributes:
        commit_lsn: LSN of its commit record, as in ``Begin``.
        end_lsn: LSN of the byte after its commit record: what to confirm when it is safe.
        commit_time: when it was committed, aware, in UTC.
    """

    commit_lsn: int
    end_lsn: int
    commit_time: datetime


@dataclass(frozen=True, slots=True)
class Origin:
    """The transaction came to this server from another by replication.

    Attributes:
        commit_lsn: LSN of its commit on the server of origin.
        name: name of the replication origin (pg_replication_origin.roname).
    """

    commit_lsn: int
    name: str


@dataclass(frozen=True, slots=True)
class Message:
    """What ``pg_logical_emit_message`` wrote.

    Attributes:
        lsn: where it was written.
        transactional: it belongs to a transaction; otherwise it stands between transactions and
            is sent at once.
        prefix: its first argument.
        content: its bytes.
    """

    lsn: int
    transactional: bool
    prefix: str
    content: bytes

    def as_dict(self) -> dict[str, Any]:
        """Make a dict that ``json.dumps`` takes; ``content`` is hexadecimal, as of a bytea."""
        return {
            "kind": "message",
            "lsn": format_lsn(self.lsn),
            "transactional": self.transactional,
            "prefix": self.prefix,
            "content": jsonable(self.content),
        }


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a relation.

    Attributes:
        name: as in pg_attribute.
        type_oid: OID of its type.
        type_modifier: atttypmod; -1 for none.
        is_key: it belongs to the replica identity; with replica identity FULL every column does.
        type_name: the built-in name (``int8``), ``schema.name`` of any other type, ``oid N`` where
            the server did not tell; a domain has the name of its base type. It decides the
            conversion.
    """

    name: str
    type_oid: int
    type_modifier: int
    is_key: bool
    type_name: str


class _Field(NamedTuple):
    """Where a column stands in a tuple and how its text is read (None: it stays text)."""

    position: int
    convert: Converter | None


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as it was when the changes that carry this object were made.

    Attributes:
        oid: OID of the table.
        schema: name of its schema.
        name: name of the table.
        replica_identity: ``d``, ``n``, ``f`` or ``i``.
        columns: the published columns, in order.
        table: ``schema.name``.
    """

    oid: int
    schema: str
    name: str
    replica_identity: ReplicaIdentity
    columns: tuple[Column, ...]
    table: str = field(init=False, compare=False)
    _fields: dict[str, _Field] = field(init=False, repr=False, compare=False)
    _key_fields: dict[str, _Field] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fields = {
            column.name: _Field(position, converter_for(column.type_name))
            for position, column in enumerate(self.columns)
        }
        key = {column.name: fields[column.name] for column in self.columns if column.is_key}
        object.__setattr__(self, "table", f"{self.schema}.{self.name}")
        object.__setattr__(self, "_fields", fields)
        object.__setattr__(self, "_key_fields", key)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Names of the columns of the replica identity."""
        return tuple(self._key_fields)

    def row(self, payload: Payload, offsets: list[int]) -> Row:
        """Make a row of all columns.

        Args:
            payload: the message that holds the tuple.
            offsets: for each column the byte at which it begins, and last the byte after them all.
        """
        return Row(self, self._fields, payload, offsets)

    def key_row(self, payload: Payload, offsets: list[int]) -> Row:
        """Make a row of the key's columns alone, from a tuple of all columns; see ``row``."""
        return Row(self, self._key_fields, payload, offsets)


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tables were truncated together.

    Attributes:
        relations: the tables.
        cascade: CASCADE was given.
        restart_identity: RESTART IDENTITY was given.
        lsn: where it stands in the log (start LSN of its message).
    """

    relations: tuple[Relation, ...]
    cascade: bool
    restart_identity: bool
    lsn: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Make a dict that ``json.dumps`` takes; ``tables`` are the names with their schemas."""
        return {
            "kind": "truncate",
            "tables": [relation.table for relation in self.relations],
            "lsn": format_lsn(self.lsn),
            "cascade": self.cascade,
            "restart_identity": self.restart_identity,
        }


class Row(Mapping[str, Any]):
    """A row: column name -> Python value.

    A value is None for NULL and ``UNCHANGED`` for a TOASTed value that the server did not send.
    ``row[name]`` converts that column; ``as_dict`` converts all and is the quickest way to all.
    Reading raises DecodeError where a text is not what the column's type allows, KeyError where
    there is no such column.
    """

    __slots__ = ("_fields", "_offsets", "_payload", "_relation")

    def __init__(
        self,
        relation: Relation,
        fields: dict[str, _Field],
        payload: Payload,
        offsets: list[int],
    ) -> None:
        self._relation = relation
        self._fields = fields
        self._payload = payload
        self._offsets = offsets

    def __getitem__(self, name: str) -> Any:
        position, convert = self._fields[name]
        payload = self._payload
        start = self._offsets[position]
        kind = payload[start]
        if kind == NULL:
            return None
        if kind == TOASTED:
            return UNCHANGED
        try:
            text = str(payload[start + TEXT_HEADER : self._offsets[position + 1]], "utf-8")
            return text if convert is None else convert(text)
        except ValueError as problem:
            # Its own text would show the host's data in tracebacks.
            raise self._unreadable(name, problem) from None

    def __len__(self) -> int:
        return len(self._fields)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.as_dict() == dict(other)

    __hash__ = None  # type: ignore[assignment]  # as of every mapping that compares by value

    def __repr__(self) -> str:
        shown = []
        for name in self:
            raw = self.raw(name)
            if isinstance(raw, bytes):
                text = raw[: _SHOWN + 1].decode("utf-8", "replace")
                shown.append(f"{name}={text[:_SHOWN] + '...' * (len(text) > _SHOWN)!r}")
            else:
                shown.append(f"{name}={raw!r}")
        return f"Row({', '.join(shown)})"

    def as_dict(self) -> dict[str, Any]:
        """Convert all columns at once.

        Raises:
            DecodeError: a text is not what its column's type allows.
        """
        # One copy of the whole costs less than a view of each column.
        payload = bytes(self._payload)
        offsets = self._offsets
        row: dict[str, Any] = {}
        name = ""
        try:
            for name, (position, convert) in self._fields.items():
                start = offsets[position]
                kind = payload[start]
                if kind == TEXT:
                    text = payload[start + TEXT_HEADER : offsets[position + 1]].decode()
                    row[name] = text if convert is None else convert(text)
                else:
                    row[name] = None if kind == NULL else UNCHANGED
        except ValueError as problem:
            raise self._unreadable(name, problem) from None
        return row

    def as_text(self) -> dict[str, str | Unchanged | None]:
        """The texts of all columns at once; see ``text``."""
        payload = bytes(self._payload)
        offsets = self._offsets
        row: dict[str, str | Unchanged | None] = {}
        name = ""
        try:
            for name, (position, _) in self._fields.items():
                start = offsets[position]
                kind = payload[start]
                if kind == TEXT:
                    row[name] = payload[start + TEXT_HEADER : offsets[position + 1]].decode()
                else:
                    row[name] = None if kind == NULL else UNCHANGED
        except ValueError as problem:
            raise self._unreadable(name, problem) from None
        return row

    def text(self, name: str) -> str | Unchanged | None:
        """The text of a column as the server sent it; None for NULL.

        Raises:
            DecodeError: it is not UTF-8.
            KeyError: there is no such column.
        """
        raw = self.raw(name)
        if not isinstance(raw, bytes):
            return raw
        try:
            return raw.decode()
        except UnicodeDecodeError as problem:
            raise self._unreadable(name, problem) from None

    def raw(self, name: str) -> bytes | Unchanged | None:
        """The bytes of a column as the server sent them; None for NULL.

        They need not be UTF-8 where the database's encoding is SQL_ASCII, which nobody checks.

        Raises:
            KeyError: there is no such column.
        """
        position = self._fields[name].position
        start, end = self._offsets[position : position + 2]
        kind = self._payload[start]
        if kind == NULL:
            return None
        if kind == TOASTED:
            return UNCHANGED
        return bytes(self._payload[start + TEXT_HEADER : end])

    def _unreadable(self, name: str, problem: ValueError) -> DecodeError:
        position = self._fields[name].position
        what = "no UTF-8" if isinstance(problem, UnicodeDecodeError) else "no such value"
        return DecodeError(
            f"column {name!r} of {self._relation.table}, type"
            f" {self._relation.columns[position].type_name}, holds {what};"
            f" raw({name!r}) gives its bytes",
            message_name=_ROW_MESSAGES[self._payload[HEADER]],
            offset=self._offsets[position],
        )


class Change:
    """One row was inserted, updated or deleted.

    Attributes:
        relation: the table.
        lsn: where the change stands in the log (start LSN of its message).
        kind: ``insert``, ``update`` or ``delete``.
        new: the row after the change; None for a delete.
        old: the row before the change; None where the server did not send it: for an insert, and
            for an update that leaves the replica identity as it was.
        old_is_key: ``old`` has only the columns of the replica identity. It has all columns with
            replica identity FULL, and then even those that are ``UNCHANGED`` in ``new``.
    """

    __slots__ = ("lsn", "new", "old", "old_is_key", "relation")

    kind: ClassVar[Kind]
    relation: Relation
    lsn: int
    new: Row | None
    old: Row | None
    old_is_key: bool

    @property
    def table(self) -> str:
        """``schema.name`` of the table."""
        return self.relation.table

    @property
    def key(self) -> dict[str, Any]:
        """The replica identity that the row had before the change (an insert: has now).

        It is empty with replica identity NOTHING and for a table without a primary key; with FULL
        it is the whole row.

        Raises:
            DecodeError: a text is not what its column's type allows.
        """
        row = self.new if self.old is None else self.old
        if row is None:
            return {}
        return {name: row[name] for name in self.relation.key_columns}

    def as_dict(self) -> dict[str, Any]:
        """Make a dict that ``json.dumps`` takes.

        Returns:
            ``kind, schema, table, lsn`` as text; ``new`` and ``old``: objects of values as
            ``fsm.postgres.values.jsonable`` makes them, or None where there is no such row;
            ``unchanged``: the names of the columns that ``new`` lacks because their values are
            ``UNCHANGED``.

        Raises:
            DecodeError: a text is not what its column's type allows.
        """
        new = None if self.new is None else self.new.as_dict()
        old = None if self.old is None else self.old.as_dict()
        return {
            "kind": self.kind,
            "schema": self.relation.schema,
            "table": self.relation.name,
            "lsn": format_lsn(self.lsn),
            "new": _known(new),
            "old": _known(old),
            "unchanged": [name for name, value in (new or {}).items() if value is UNCHANGED],
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.table} at {format_lsn(self.lsn)}>"


def _known(row: dict[str, Any] | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {name: jsonable(value) for name, value in row.items() if value is not UNCHANGED}


class Insert(Change):
    """A row was inserted: ``new`` is the row."""

    __slots__ = ()

    kind = "insert"
    new: Row

    def __init__(self, relation: Relation, lsn: int, new: Row) -> None:
        self.relation = relation
        self.lsn = lsn
        # Narrower than in Change, which is sound for what is only ever read.
        self.new = new  # pyright: ignore[reportIncompatibleVariableOverride]
        self.old = None
        self.old_is_key = False


class Update(Change):
    """A row was updated: ``new`` is the row now; ``old`` see ``Change``."""

    __slots__ = ()

    kind = "update"
    new: Row

    def __init__(
        self, relation: Relation, lsn: int, new: Row, old: Row | None, *, old_is_key: bool
    ) -> None:
        self.relation = relation
        self.lsn = lsn
        # Narrower than in Change, which is sound for what is only ever read.
        self.new = new  # pyright: ignore[reportIncompatibleVariableOverride]
        self.old = old
        self.old_is_key = old_is_key


class Delete(Change):
    """A row was deleted: ``old`` is the row, or its key."""

    __slots__ = ()

    kind = "delete"
    old: Row

    def __init__(self, relation: Relation, lsn: int, old: Row, *, old_is_key: bool) -> None:
        self.relation = relation
        self.lsn = lsn
        self.new = None
        # Narrower than in Change, which is sound for what is only ever read.
        self.old = old  # pyright: ignore[reportIncompatibleVariableOverride]
        self.old_is_key = old_is_key


StreamMessage: TypeAlias = Begin | Commit | Change | Truncate | Message | Origin
"""What a decoder returns of a stream."""
