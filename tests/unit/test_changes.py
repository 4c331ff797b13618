from __future__ import annotations

import json
import pickle
from collections.abc import Mapping

import pytest

from fsm.errors import DecodeError
from fsm.postgres.changes import Change, Insert, Row
from fsm.postgres.pgoutput import Decoder
from fsm.postgres.values import UNCHANGED
from fsm.testing import pgoutput as wire
from fsm.testing.pgoutput import ColumnSpec, Value

COLUMNS = [
    ColumnSpec("id", 20, is_key=True),
    ColumnSpec("note", 25),
    ColumnSpec("at", 1184),
    ColumnSpec("body", 3802),
]
NOON = "2026-02-28 12:00:00+00"


def decode(payload: bytes) -> Change:
    decoder = Decoder()
    decoder.decode(wire.relation(1, "orders", COLUMNS))
    found = decoder.decode(payload)
    assert isinstance(found, Change)
    return found


def row(*values: Value) -> Row:
    found = decode(wire.insert(1, values))
    assert isinstance(found, Insert)
    return found.new


def test_a_row_is_a_mapping_in_the_order_of_the_columns() -> None:
    found = row("1", "a", None, UNCHANGED)
    assert isinstance(found, Mapping)
    assert list(found) == ["id", "note", "at", "body"]
    assert len(found) == 4
    assert list(found.values()) == [1, "a", None, UNCHANGED]
    assert "note" in found
    assert "nothing" not in found


def test_null_and_unchanged_are_told_apart() -> None:
    found = row("1", None, None, UNCHANGED)
    assert found["note"] is None
    assert found["body"] is UNCHANGED
    assert found.text("note") is found.raw("note") is found.as_text()["note"] is None
    assert found.text("body") is found.raw("body") is found.as_text()["body"] is UNCHANGED


def test_an_empty_string_is_not_null() -> None:
    assert row("1", "", None, None)["note"] == ""


def test_a_column_that_is_not_there_is_a_key_error() -> None:
    found = row("1", None, None, None)
    for read in (found.__getitem__, found.text, found.raw):
        with pytest.raises(KeyError, match="nothing"):
            read("nothing")
    assert found.get("nothing") is None


def test_the_text_of_a_column_is_what_the_server_sent() -> None:
    found = row("007", None, NOON, '{"a":1.10}')
    assert found["body"] == {"a": 1.1}
    assert found.text("body") == '{"a":1.10}'
    assert found.raw("id") == b"007"


@pytest.mark.parametrize("read", [lambda row: row["at"], lambda row: row.as_dict()])
def test_a_text_that_cannot_be_read_names_column_and_type(read: object) -> None:
    assert callable(read)
    found = row("1", "ok", "at noon", None)
    with pytest.raises(DecodeError) as caught:
        read(found)
    assert str(caught.value) == (
        "Insert message, byte 46: column 'at' of public.orders, type timestamptz, holds no such"
        " value; raw('at') gives its bytes"
    )
    assert caught.value.message_name == "Insert"
    assert found["note"] == "ok"


def test_the_error_does_not_repeat_the_hosts_data() -> None:
    with pytest.raises(DecodeError) as caught:
        row("4111-1111", None, None, None).as_dict()
    assert "4111" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "read",
    [
        lambda row: row["note"],
        lambda row: row.text("note"),
        lambda row: row.as_dict(),
        lambda row: row.as_text(),
    ],
)
def test_bytes_that_are_no_utf8_are_named_and_still_to_be_had(read: object) -> None:
    assert callable(read)
    found = row("1", b"caf\xe9", None, None)
    with pytest.raises(DecodeError, match=r"'note' of public.orders, type text, holds no UTF-8"):
        read(found)
    assert found.raw("note") == b"caf\xe9"
    assert "caf\ufffd" in repr(found)


def test_the_error_can_be_pickled() -> None:
    with pytest.raises(DecodeError) as caught:
        row("x", None, None, None).as_dict()
    copied = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 -- our own bytes
    assert (str(copied), copied.offset) == (str(caught.value), caught.value.offset)


def test_the_repr_of_a_row_is_short_and_tells_markers_from_text() -> None:
    assert repr(row("1", "x" * 100, None, UNCHANGED)) == (
        "Row(id='1', note='" + "x" * 40 + "...', at=None, body=UNCHANGED)"
    )


def test_a_change_shows_its_kind_table_and_lsn() -> None:
    found = decode(wire.insert(1, ["1", None, None, None], lsn=0x16_B374_D848))
    assert repr(found) == "<Insert public.orders at 16/B374D848>"


def test_an_insert_as_a_dict_is_json() -> None:
    found = decode(wire.insert(1, ["1", "a", NOON, '{"n": [1]}'], lsn=0x16_B374_D848))
    assert json.loads(json.dumps(found.as_dict())) == {
        "kind": "insert",
        "schema": "public",
        "table": "orders",
        "lsn": "16/B374D848",
        "new": {"id": 1, "note": "a", "at": "2026-02-28T12:00:00+00:00", "body": {"n": [1]}},
        "old": None,
        "unchanged": [],
    }


def test_an_update_as_a_dict_lists_what_was_not_sent() -> None:
    found = decode(wire.update(1, ["2", None, None, UNCHANGED], key=["1", None, None, None], lsn=1))
    assert found.as_dict() == {
        "kind": "update",
        "schema": "public",
        "table": "orders",
        "lsn": "0/1",
        "new": {"id": 2, "note": None, "at": None},
        "old": {"id": 1},
        "unchanged": ["body"],
    }


def test_a_delete_as_a_dict_has_no_new_row() -> None:
    found = decode(wire.delete(1, key=["1", None, None, None]))
    assert (found.as_dict()["kind"], found.as_dict()["new"]) == ("delete", None)
    assert found.as_dict()["old"] == {"id": 1}


def test_the_key_of_an_insert_is_that_of_the_new_row() -> None:
    assert decode(wire.insert(1, ["1", "a", None, None])).key == {"id": 1}


def test_a_message_as_a_dict_is_json() -> None:
    found = Decoder().decode(wire.message(7, "audit", b"\0\xff", transactional=False))
    assert found is not None
    assert json.loads(json.dumps(found.as_dict())) == {  # type: ignore[union-attr]
        "kind": "message",
        "lsn": "0/7",
        "transactional": False,
        "prefix": "audit",
        "content": "\\x00ff",
    }
