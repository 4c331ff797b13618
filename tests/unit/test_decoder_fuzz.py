"""Whatever arrives, the decoder answers with a message or a DecodeError."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm.errors import DecodeError
from fsm.postgres.changes import Change
from fsm.postgres.pgoutput import HEADER, Decoder
from fsm.postgres.values import TYPE_NAMES, UNCHANGED
from fsm.testing import pgoutput as wire
from fsm.testing.pgoutput import ColumnSpec, Value

SAMPLES: dict[str, Value] = {
    "bool": "t",
    "bytea": "\\xdeadbeef",
    "int2": "-1",
    "int4": "2",
    "int8": "9007199254740993",
    "oid": "4294967295",
    "json": '{"a": [1, 2.5e3, null, "\\u00e9"]}',
    "jsonb": "[true, {}]",
    "float4": "1.5e-07",
    "float8": "NaN",
    "numeric": "-12345.670",
    "date": "2026-02-28",
    "time": "24:00:00",
    "timetz": "01:02:03.5+05:30",
    "timestamp": "infinity",
    "timestamptz": "2026-02-28 01:02:03.456789+00",
    "uuid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "interval": "1 year -3 days +04:05:06.7",
    "inet": "192.168.0.1/24",
    "cidr": "2001:db8::/32",
    "int4range": "[1,5)",
    "int8range": "empty",
    "numrange": "(,1.50]",
    "daterange": "[2026-02-28,infinity)",
    "tsrange": '["2026-02-28 01:02:03",)',
    "tstzrange": '(,"2026-02-28 01:02:03+00"]',
    "int4multirange": "{[1,3),[5,7)}",
    "int8multirange": "{}",
    "nummultirange": "{(,)}",
    "datemultirange": "{[2026-02-28,2026-03-01)}",
    "tsmultirange": '{["2026-02-28 01:02:03",)}',
    "tstzmultirange": '{(,"2026-02-28 01:02:03+00"]}',
    "money": "12.34",
    "_box": "{(1,1),(0,0);NULL}",
    "_int4": "{{1,NULL},{3,-4}}",
    "_numeric": "[0:1]={1.50,NaN}",
    "_text": '{"a,b","c\\"d",NULL,""}',
    "_tsrange": '{"[\\"2026-02-28 01:02:03\\",)",empty}',
    "text": "Zürich",
    "varchar": None,
    "xml": UNCHANGED,
}

COLUMNS = [
    ColumnSpec(f"{name}_{oid}", oid, is_key=name in {"int8", "uuid"})
    for oid, name in TYPE_NAMES.items()
    if name in SAMPLES
]
VALUES = [SAMPLES[name] for name in TYPE_NAMES.values() if name in SAMPLES]
KEY = [value if column.is_key else None for column, value in zip(COLUMNS, VALUES, strict=True)]

MESSAGES = {
    "begin": wire.begin(7, 7),
    "commit": wire.commit(7, 8),
    "origin": wire.origin(7, "a"),
    "message": wire.message(7, "a", b"content"),
    "type": wire.type_(16400, "int4"),
    "relation": wire.relation(2, "other", COLUMNS),
    "truncate": wire.truncate([1, 1], cascade=True),
    "insert": wire.insert(1, VALUES),
    "update": wire.update(1, VALUES),
    "update_key": wire.update(1, VALUES, key=KEY),
    "update_full": wire.update(1, VALUES, old=VALUES),
    "delete_key": wire.delete(1, key=KEY),
    "delete_full": wire.delete(1, old=VALUES),
}
EACH = pytest.mark.parametrize("name", MESSAGES)

bounded = settings(max_examples=150, deadline=None)


def prepared() -> Decoder:
    decoder = Decoder()
    decoder.decode(wire.relation(1, "t", COLUMNS))
    return decoder


def read_all(decoder: Decoder, payload: bytes) -> None:
    message = decoder.decode(payload)
    if not isinstance(message, Change):
        return
    for row in (message.new, message.old):
        if row is None:
            continue
        repr(row)
        with suppress(DecodeError):
            row.as_text()
        for name in row:
            row.raw(name)
            with suppress(DecodeError):
                row[name]
    assert isinstance(message.key, dict)
    json.dumps(message.as_dict(), allow_nan=False)


@EACH
def test_every_message_is_read_whole(name: str) -> None:
    read_all(prepared(), MESSAGES[name])


@EACH
def test_every_beginning_of_a_message_is_refused(name: str) -> None:
    decoder = prepared()
    for size in range(len(MESSAGES[name])):
        with pytest.raises(DecodeError):
            decoder.decode(MESSAGES[name][:size])


@EACH
def test_every_byte_too_many_is_refused(name: str) -> None:
    decoder = prepared()
    for byte in range(256):
        with pytest.raises(DecodeError):
            decoder.decode(MESSAGES[name] + bytes((byte,)))


@EACH
def test_any_single_byte_may_be_wrong(name: str) -> None:
    whole = MESSAGES[name]
    decoder = prepared()
    for place in range(len(whole)):
        for byte in (0, 0xFF, whole[place] ^ 1, whole[place] ^ 0x80):
            damaged = bytearray(whole)
            damaged[place] = byte
            with suppress(DecodeError):
                read_all(decoder, bytes(damaged))


@given(
    st.sampled_from(sorted(MESSAGES)),
    st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=8)), max_size=6),
    st.integers(0, 2**16),
    st.binary(max_size=40),
)
@bounded
def test_a_damaged_message_is_read_or_refused(
    name: str, splices: list[tuple[int, bytes]], size: int, tail: bytes
) -> None:
    damaged = bytearray(MESSAGES[name])
    for place, splice in splices:
        start = place % len(damaged)
        damaged[start : start + len(splice)] = splice
    for payload in (damaged, damaged[: size % len(damaged)], damaged + tail):
        with suppress(DecodeError):
            read_all(prepared(), bytes(payload))


@given(st.binary(max_size=200), st.sampled_from(b"BCDIMORTUY"))
@bounded
def test_noise_after_a_valid_header_is_read_or_refused(noise: bytes, tag: int) -> None:
    header = b"w" + bytes(HEADER - 1)
    for payload in (noise, header + noise, header + bytes((tag,)) + noise):
        with suppress(DecodeError):
            read_all(prepared(), payload)


@given(st.lists(st.sampled_from(sorted(MESSAGES)), max_size=8), st.integers(0, 2**16))
@bounded
def test_a_refused_message_does_not_spoil_the_next(names: list[str], size: int) -> None:
    decoder = prepared()
    for name in names:
        whole = MESSAGES[name]
        with pytest.raises(DecodeError):
            decoder.decode(whole[: size % len(whole)])
        read_all(decoder, whole)
