from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import DecodeError
from fsm.postgres.changes import Begin, Change, Commit, Delete, Insert, Message, Origin, Update
from fsm.postgres.pgoutput import HEADER, Decoder
from fsm.postgres.values import UNCHANGED
from fsm.testing import pgoutput as wire
from fsm.testing.pgoutput import ColumnSpec, Value

ORDERS = 16385
COLUMNS = [
    ColumnSpec("id", 20, is_key=True),
    ColumnSpec("amount", 1700, type_modifier=655366),
    ColumnSpec("note", 25),
]
NOON = datetime(2026, 2, 28, 12, 0, 0, 123456, UTC)


@pytest.fixture
def decoder() -> Decoder:
    decoder = Decoder()
    assert decoder.decode(wire.relation(ORDERS, "orders", COLUMNS)) is None
    return decoder


def change(decoder: Decoder, payload: bytes) -> Change:
    found = decoder.decode(payload)
    assert isinstance(found, Change)
    return found


# The bytes below are written out by hand from the documentation of the formats, so that the
# decoder is not only compared with our own encoder.
W = b"w" + bytes(24)


def test_a_transaction_written_out_by_hand_is_read() -> None:
    decoder = Decoder()
    begin = W + b"B" + bytes.fromhex("00000016B374D848 000000000000000A 000002A9")
    relation = (
        W
        + b"R"
        + bytes.fromhex("00004001")
        + b"public\0orders\0d"
        + bytes.fromhex("0002")
        + bytes.fromhex("01")
        + b"id\0"
        + bytes.fromhex("00000014 FFFFFFFF")
        + bytes.fromhex("00")
        + b"note\0"
        + bytes.fromhex("00000019 FFFFFFFF")
    )
    insert = (
        b"w"
        + bytes.fromhex("00000016B374D000 00000016B374D000 0000000000000000")
        + b"I"
        + bytes.fromhex("00004001")
        + b"N"
        + bytes.fromhex("0002")
        + b"t"
        + bytes.fromhex("00000002")
        + b"42"
        + b"n"
    )
    commit = W + b"C" + bytes.fromhex("00 00000016B374D848 00000016B374D880 000000000000000A")

    time = datetime(2000, 1, 1, 0, 0, 0, 10, UTC)
    assert decoder.decode(begin) == Begin(0x16_B374_D848, time, 681)
    assert decoder.decode(relation) is None
    found = change(decoder, insert)
    assert (found.kind, found.table, found.lsn) == ("insert", "public.orders", 0x16_B374_D000)
    assert found.new == {"id": 42, "note": None}
    assert decoder.decode(commit) == Commit(0x16_B374_D848, 0x16_B374_D880, time)


def test_truncates_origins_and_messages_written_out_by_hand_are_read(decoder: Decoder) -> None:
    truncate = decoder.decode(W + b"T" + bytes.fromhex("00000001 02 00004001"))
    assert truncate is not None
    assert truncate.as_dict() == {  # type: ignore[union-attr]
        "kind": "truncate",
        "tables": ["public.orders"],
        "lsn": "0/0",
        "cascade": False,
        "restart_identity": True,
    }
    origin = W + b"O" + bytes.fromhex("0000000000000007") + b"node_a\0"
    assert decoder.decode(origin) == Origin(7, "node_a")
    message = W + b"M" + bytes.fromhex("01 0000000000000009") + b"audit\0\0\0\0\2\0\xff"
    assert decoder.decode(message) == Message(9, True, "audit", b"\0\xff")  # noqa: FBT003 -- as the class takes it


def test_every_message_reads_back_as_it_was_written(decoder: Decoder) -> None:
    assert decoder.decode(wire.begin(2**64 - 1, 2**32 - 1, NOON)) == Begin(
        2**64 - 1, NOON, 2**32 - 1
    )
    assert decoder.decode(wire.commit(5, 6, NOON)) == Commit(5, 6, NOON)
    assert decoder.decode(wire.origin(7, "Zürich")) == Origin(7, "Zürich")
    assert decoder.decode(wire.message(8, "p", b"x", transactional=False)) == Message(
        8,
        False,  # noqa: FBT003 -- as the class takes it
        "p",
        b"x",
    )
    truncate = decoder.decode(wire.truncate([ORDERS], cascade=True, lsn=9))
    assert truncate is not None
    assert truncate.as_dict() == {  # type: ignore[union-attr]
        "kind": "truncate",
        "tables": ["public.orders"],
        "lsn": "0/9",
        "cascade": True,
        "restart_identity": False,
    }


def test_a_relation_says_what_the_server_said(decoder: Decoder) -> None:
    relation = change(decoder, wire.insert(ORDERS, ["1", None, None])).relation
    assert (relation.oid, relation.schema, relation.name) == (ORDERS, "public", "orders")
    assert relation.replica_identity == "d"
    assert relation.key_columns == ("id",)
    amount = relation.columns[1]
    assert (amount.name, amount.type_oid, amount.type_modifier) == ("amount", 1700, 655366)
    assert (amount.is_key, amount.type_name) == (False, "numeric")


def test_an_empty_schema_is_pg_catalog() -> None:
    decoder = Decoder()
    decoder.decode(wire.relation(1, "t", [], schema=""))
    assert change(decoder, wire.insert(1, [])).table == "pg_catalog.t"


def test_a_table_without_columns_has_empty_rows() -> None:
    decoder = Decoder()
    decoder.decode(wire.relation(1, "t", []))
    assert change(decoder, wire.insert(1, [])).new == {}


def test_a_changed_table_leaves_earlier_changes_as_they_were(decoder: Decoder) -> None:
    before = change(decoder, wire.insert(ORDERS, ["1", None, "a"]))
    decoder.decode(wire.relation(ORDERS, "orders", [ColumnSpec("id", 25)]))
    after = change(decoder, wire.insert(ORDERS, ["1"]))
    assert before.new == {"id": 1, "amount": None, "note": "a"}
    assert after.new == {"id": "1"}


def test_a_domain_is_converted_as_its_base_type() -> None:
    decoder = Decoder()
    decoder.decode(wire.type_(16400, "int4"))
    decoder.decode(wire.type_(16401, "mood", "public"))
    decoder.decode(wire.type_(16402, "int4", "public"))
    names = ["age", "mood", "mine", "new"]
    columns = [ColumnSpec(name, 16400 + place) for place, name in enumerate(names)]
    decoder.decode(wire.relation(1, "t", columns))
    found = change(decoder, wire.insert(1, ["7"] * 4))
    assert found.new == {"age": 7, "mood": "7", "mine": "7", "new": "7"}
    assert [column.type_name for column in found.relation.columns] == [
        "int4",
        "public.mood",
        "public.int4",
        "oid 16403",
    ]


def test_an_update_that_keeps_the_key_has_no_old_row(decoder: Decoder) -> None:
    found = decoder.decode(wire.update(ORDERS, ["1", "2.50", "a"], lsn=3))
    assert isinstance(found, Update)
    assert (found.old, found.old_is_key, found.lsn) == (None, False, 3)
    assert found.key == {"id": 1}


def test_an_update_of_the_key_has_the_old_key_alone(decoder: Decoder) -> None:
    found = decoder.decode(wire.update(ORDERS, ["2", None, "a"], key=["1", None, None]))
    assert isinstance(found, Update)
    assert found.old == {"id": 1}
    assert found.old_is_key
    assert found.new["id"] == 2
    assert found.key == {"id": 1}


def test_an_update_with_full_identity_has_the_whole_old_row(decoder: Decoder) -> None:
    big = "x" * 9000
    found = decoder.decode(wire.update(ORDERS, ["1", "2", UNCHANGED], old=["1", None, big]))
    assert isinstance(found, Update)
    assert found.old == {"id": 1, "amount": None, "note": big}
    assert not found.old_is_key
    assert found.new["note"] is UNCHANGED


def test_a_delete_has_the_old_key_or_the_old_row(decoder: Decoder) -> None:
    by_key = decoder.decode(wire.delete(ORDERS, key=["1", None, None]))
    assert isinstance(by_key, Delete)
    assert by_key.new is None
    assert by_key.old == {"id": 1}
    assert by_key.old_is_key
    full = decoder.decode(wire.delete(ORDERS, old=["1", None, "a"]))
    assert isinstance(full, Delete)
    assert full.old == {"id": 1, "amount": None, "note": "a"}
    assert not full.old_is_key


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_like_payload_is_read(decoder: Decoder, kind: Any) -> None:
    found = change(decoder, kind(wire.insert(ORDERS, ["1", "2.50", "é"])))
    assert found.new is not None
    assert found.new["note"] == "é"
    assert found.new.as_text() == {"id": "1", "amount": "2.50", "note": "é"}


def test_a_keepalive_is_written_as_the_server_writes_it() -> None:
    second = wire.EPOCH + timedelta(seconds=1)
    assert wire.keepalive(
        0x16_B374_D848, reply_requested=True, server_time=second
    ) == b"k" + bytes.fromhex("00000016B374D848 00000000000F4240 01")


# What does not follow the protocol.


def refusal(decoder: Decoder, payload: bytes) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decoder.decode(payload)
    return caught.value


def test_a_payload_that_is_no_xlogdata_is_refused(decoder: Decoder) -> None:
    messages = (wire.insert(ORDERS, ["1", None, None]), wire.begin(7, 7))
    for payload in (wire.keepalive(7), *(b"x" + message[1:] for message in messages)):
        error = refusal(decoder, payload)
        assert (error.message_name, error.offset) == ("XLogData", 0)


@pytest.mark.parametrize("payload", [b"", b"w", W])
def test_a_payload_without_a_message_is_refused(decoder: Decoder, payload: bytes) -> None:
    error = refusal(decoder, payload)
    assert (error.message_name, error.offset) == ("XLogData", len(payload))


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        (b"S", "Stream Start"),
        (b"E", "Stream Stop"),
        (b"c", "Stream Commit"),
        (b"A", "Stream Abort"),
        (b"b", "Begin Prepare"),
        (b"P", "Prepare"),
        (b"K", "Commit Prepared"),
        (b"r", "Rollback Prepared"),
        (b"p", "Stream Prepare"),
    ],
)
def test_a_message_of_a_later_protocol_is_named(decoder: Decoder, tag: bytes, name: str) -> None:
    error = refusal(decoder, W + tag + bytes(30))
    assert (error.message_name, error.offset) == (name, HEADER)
    assert f"tag '{tag.decode()}' belongs to protocol version 2 or later" in str(error)


def test_an_unknown_tag_is_shown(decoder: Decoder) -> None:
    error = refusal(decoder, W + b"\xff")
    assert (error.message_name, error.offset) == ("Unknown", HEADER)
    assert r"'\xff' is no message of pgoutput" in str(error)


@pytest.mark.parametrize(
    ("payload", "name", "offset", "words"),
    [
        (wire.insert(7, ["1"]), "Insert", 26, "relation 7 was not described before"),
        (wire.delete(7, key=["1"]), "Delete", 26, "relation 7 was not described before"),
        (wire.truncate([ORDERS, 7]), "Truncate", 31, "relation 7 was not described before"),
        (
            wire.insert(ORDERS, ["1"]),
            "Insert",
            31,
            "a tuple of 1 columns, where public.orders has 3",
        ),
        (wire.insert(ORDERS, ["1"] * 65535), "Insert", 31, "a tuple of 65535 columns"),
        (wire.delete(ORDERS), "Delete", 30, "it ends early"),
        (W + b"D\0\0\x40\1N\0\3nnn", "Delete", 30, "a tuple of kind 'N', where O or K is due"),
        (W + b"I\0\0\x40\1K\0\3nnn", "Insert", 30, "a tuple of kind 'K', where N is due"),
        (W + b"U\0\0\x40\1X\0\3nnn", "Update", 30, "where N, O or K is due"),
        (W + b"U\0\0\x40\1K\0\3nnnK\0\3nnn", "Update", 36, "a tuple of kind 'K', where N is due"),
        (W + b"U\0\0\x40\1O\0\3nnnN\0\4nnn", "Update", 37, "a tuple of 4 columns"),
        (
            W + b"I\0\0\x40\1N\0\3nnb\0\0\0\1x",
            "Insert",
            35,
            "'note' of public.orders came in binary",
        ),
        (W + b"I\0\0\x40\1N\0\3nzn", "Insert", 34, "'amount' of public.orders came as 'z'"),
        (
            W + b"I\0\0\x40\1N\0\3nnt\0\0\0\2x",
            "Insert",
            41,
            "bytes missing from its last column: 1",
        ),
        (W + b"I\0\0\x40\1N\0\3t\xff\xff\xff\xffnn", "Insert", 40, "it ends early"),
        (W + b"I\0\0\x40\1N\0\3nnnnn", "Insert", 36, "bytes left over: 2"),
        (W + b"C\1" + bytes(24), "Commit", 26, "unknown flags 0x01"),
        (W + b"T\0\0\0\1\4\0\0\x40\1", "Truncate", 30, "unknown flags 0x04"),
        (W + b"T\xff\xff\xff\xff\0", "Truncate", 31, "bytes due: 17179869180, bytes left: 0"),
        (W + b"M\2" + bytes(14), "Message", 26, "unknown flags 0x02"),
        (
            W + b"M\0" + bytes(9) + b"\xff\xff\xff\xff",
            "Message",
            40,
            "bytes due: 4294967295, bytes left: 0",
        ),
        (W + b"O" + bytes(8) + b"abc", "Origin", 34, "a string does not end"),
        (W + b"O" + bytes(8) + b"\xff\0", "Origin", 34, "a string is no UTF-8"),
        (W + b"B" + bytes(8) + b"\x7f" + bytes(7) + bytes(4), "Begin", 34, "no time that can be"),
        (W + b"R\0\0\0\1\0t\0x\0\0", "Relation", 33, "unknown replica identity 'x'"),
        (W + b"R\0\0\0\1\0t\0d\xff\xff", "Relation", 36, "bytes due: 1, bytes left: 0"),
        (
            wire.relation(1, "t", [ColumnSpec("a", 20), ColumnSpec("a", 20)]),
            "Relation",
            64,
            "two columns have one name",
        ),
        (wire.type_(1, "t") + b"!", "Type", 33, "bytes left over: 1"),
    ],
)
def test_what_is_wrong_and_where_is_said(
    decoder: Decoder, payload: bytes, name: str, offset: int, words: str
) -> None:
    error = refusal(decoder, payload)
    assert words in str(error)
    assert (error.message_name, error.offset) == (name, offset)


def test_a_refused_relation_leaves_the_known_one(decoder: Decoder) -> None:
    refusal(decoder, wire.relation(ORDERS, "orders", [ColumnSpec("id", 25)]) + b"!")
    assert change(decoder, wire.insert(ORDERS, ["1", None, None])).new == {
        "id": 1,
        "amount": None,
        "note": None,
    }


# Anything that the encoder can write is read back.

NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=63)
VALUES: st.SearchStrategy[Value] = st.one_of(
    st.none(), st.just(UNCHANGED), st.text(st.characters(codec="utf-8"))
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[ColumnSpec], list[Value], list[Value]]:
    names = draw(st.lists(NAMES, unique=True, max_size=12))
    columns = [ColumnSpec(name, 25, is_key=draw(st.booleans())) for name in names]
    rows = [draw(st.lists(VALUES, min_size=len(names), max_size=len(names))) for _ in "ab"]
    return columns, rows[0], rows[1]


@given(tables(), st.integers(0, 2**64 - 1), st.sampled_from("dnfi"))
def test_rows_of_any_table_read_back(
    table: tuple[list[ColumnSpec], list[Value], list[Value]], lsn: int, identity: str
) -> None:
    columns, values, other = table
    new = {column.name: value for column, value in zip(columns, values, strict=True)}
    old = {column.name: value for column, value in zip(columns, other, strict=True)}
    key = {column.name: old[column.name] for column in columns if column.is_key}
    decoder = Decoder()
    decoder.decode(wire.relation(1, "t", columns, schema="s", replica_identity=identity))

    inserted = decoder.decode(wire.insert(1, values, lsn=lsn))
    assert isinstance(inserted, Insert)
    assert (inserted.lsn, inserted.old) == (lsn, None)
    assert inserted.new.as_dict() == dict(inserted.new) == inserted.new.as_text() == new

    updated = decoder.decode(wire.update(1, values, old=other))
    assert isinstance(updated, Update)
    assert updated.new == new
    assert updated.old == old
    assert updated.key == key

    moved = decoder.decode(wire.update(1, values, key=other))
    assert isinstance(moved, Update)
    assert moved.new == new
    assert moved.old == moved.key == key

    deleted = decoder.decode(memoryview(wire.delete(1, key=other)))
    assert isinstance(deleted, Delete)
    assert deleted.old.as_dict() == dict(deleted.old) == key


@given(
    lsn=st.integers(0, 2**64 - 1),
    xid=st.integers(0, 2**32 - 1),
    moment=st.datetimes(timezones=st.just(UTC)),
    name=NAMES,
    content=st.binary(),
    flag=st.booleans(),
)
def test_messages_other_than_rows_read_back(
    lsn: int, xid: int, moment: datetime, name: str, content: bytes, *, flag: bool
) -> None:
    decoder = Decoder()
    assert decoder.decode(wire.begin(lsn, xid, moment)) == Begin(lsn, moment, xid)
    assert decoder.decode(wire.commit(lsn, lsn, moment)) == Commit(lsn, lsn, moment)
    assert decoder.decode(wire.origin(lsn, name)) == Origin(lsn, name)
    sent = wire.message(lsn, name, content, transactional=flag)
    assert decoder.decode(sent) == Message(lsn, flag, name, content)


def test_the_clock_is_counted_from_the_year_2000() -> None:
    begin = Decoder().decode(wire.begin(1, 1, wire.EPOCH - timedelta(days=1)))
    assert isinstance(begin, Begin)
    assert begin.commit_time == datetime(1999, 12, 31, tzinfo=UTC)
