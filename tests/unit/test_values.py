from __future__ import annotations

import copy
import json
import math
import pickle
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Context, Decimal, localcontext
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.postgres import types as psycopg_types
from psycopg.types import TypeInfo
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from fsm.errors import BadInput
from fsm.postgres.values import (
    TYPE_NAMES,
    UNCHANGED,
    Interval,
    OutOfRange,
    converter_for,
    jsonable,
)


def read(type_name: str, text: str) -> Any:
    convert = converter_for(type_name)
    assert convert is not None
    return convert(text)


def offset(hours: int, minutes: int = 0, seconds: int = 0) -> timezone:
    return timezone(timedelta(hours=hours, minutes=minutes, seconds=seconds))


@pytest.mark.parametrize(
    ("type_name", "text", "value"),
    [
        ("bool", "t", True),
        ("bool", "f", False),
        ("int2", "-32768", -32768),
        ("int4", "2147483647", 2147483647),
        ("int8", "-9223372036854775808", -(2**63)),
        ("oid", "4294967295", 2**32 - 1),
        ("float4", "0.1", 0.1),
        ("float8", "1e+20", 1e20),
        ("float8", "-1.5e-07", -1.5e-07),
        ("float8", "5e-324", 5e-324),
        ("float8", "Infinity", math.inf),
        ("float8", "-Infinity", -math.inf),
        ("numeric", "12345678901234567890.123", Decimal("12345678901234567890.123")),
        ("numeric", "-0.00001", Decimal("-0.00001")),
        ("numeric", "Infinity", Decimal("Infinity")),
        ("numeric", "-Infinity", Decimal("-Infinity")),
        ("bytea", "\\xdeadBEEF", b"\xde\xad\xbe\xef"),
        ("bytea", "\\x", b""),
        ("bytea", "", b""),
        ("bytea", "a\\\\b\\000\\377 c", b"a\\b\x00\xff c"),
        ("date", "2026-02-28", date(2026, 2, 28)),
        ("date", "0001-01-01", date(1, 1, 1)),
        ("time", "23:59:59.5", time(23, 59, 59, 500000)),
        ("timetz", "23:59:59+05:30", time(23, 59, 59, tzinfo=offset(5, 30))),
        ("timetz", "00:00:00-15:59:59", time(0, tzinfo=offset(-15, -59, -59))),
        ("timestamp", "2026-02-28 01:02:03", datetime(2026, 2, 28, 1, 2, 3)),  # noqa: DTZ001 -- it has no zone
        ("timestamp", "9999-12-31 23:59:59.999999", datetime.max),  # noqa: DTZ901 -- likewise
        ("timestamptz", "2026-02-28 01:02:03.4+00", datetime(2026, 2, 28, 1, 2, 3, 400000, UTC)),
        (
            "timestamptz",
            "2026-02-28 01:02:03.000004-03:30",
            datetime(2026, 2, 28, 1, 2, 3, 4, offset(-3, -30)),
        ),
        (
            "timestamptz",
            "1890-01-01 00:53:28+00:53:28",
            datetime(1890, 1, 1, 0, 53, 28, tzinfo=offset(0, 53, 28)),
        ),
        (
            "uuid",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ),
        ("inet", "192.168.0.1", IPv4Address("192.168.0.1")),
        ("inet", "192.168.0.1/24", IPv4Interface("192.168.0.1/24")),
        ("inet", "0.0.0.0/0", IPv4Interface("0.0.0.0/0")),
        ("inet", "::1", IPv6Address("::1")),
        ("inet", "::ffff:1.2.3.4", IPv6Address("::ffff:1.2.3.4")),
        ("inet", "fe80::a/64", IPv6Interface("fe80::a/64")),
        ("cidr", "10.0.0.0/8", IPv4Network("10.0.0.0/8")),
        ("cidr", "1.2.3.4/32", IPv4Network("1.2.3.4/32")),
        ("cidr", "2001:db8::/32", IPv6Network("2001:db8::/32")),
        ("interval", "1 mon -2 days 00:00:01.5", Interval(1, -2, 1_500_000)),
        ("_int4", "{1,NULL,-3}", [1, None, -3]),
        ("_box", "{(1,1),(0,0);(3,3),(2,2)}", ["(1,1),(0,0)", "(3,3),(2,2)"]),
        ("int4range", "[1,5)", Range(1, 5, "[)")),
        ("int8multirange", "{[1,3),[5,)}", Multirange([Range(1, 3, "[)"), Range(5, None, "[)")])),
        ("json", '{"a": [1, null, 1.5, "x"]}', {"a": [1, None, 1.5, "x"]}),
        ("jsonb", "null", None),
        ("jsonb", "9007199254740993", 9007199254740993),
    ],
)
def test_text_becomes_the_value_that_it_means(type_name: str, text: str, value: Any) -> None:
    found = read(type_name, text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read_as_nan() -> None:
    assert math.isnan(read("float8", "NaN"))
    assert read("numeric", "NaN").is_nan()


def test_a_timestamp_with_zone_keeps_the_offset_of_its_text() -> None:
    assert read("timestamptz", "2026-02-28 01:02:03+02").utcoffset() == timedelta(hours=2)
    assert read("timetz", "01:02:03-02").utcoffset() == timedelta(hours=-2)


def test_a_timestamp_without_zone_is_naive() -> None:
    assert read("timestamp", "2026-02-28 01:02:03").tzinfo is None


def test_the_scale_of_a_numeric_is_kept() -> None:
    assert str(read("numeric", "1.50")) == "1.50"


def test_a_numeric_is_exact_whatever_context_the_host_has_set() -> None:
    digits = "9" * 131072 + "." + "1" * 16383
    with localcontext(Context(prec=3)):
        assert jsonable(read("numeric", digits)) == digits


@pytest.mark.parametrize(
    ("type_name", "text"),
    [
        ("date", "infinity"),
        ("date", "-infinity"),
        ("date", "0044-03-15 BC"),
        ("date", "10000-01-01"),
        ("date", "5874897-12-31"),
        ("timestamp", "infinity"),
        ("timestamp", "4714-11-24 00:00:00 BC"),
        ("timestamp", "294276-12-31 23:59:59.999999"),
        ("timestamptz", "-infinity"),
        ("timestamptz", "0044-03-15 12:00:00.5+00:53:28 BC"),
        ("timestamptz", "10000-01-01 00:00:00+00"),
        ("time", "24:00:00"),
        ("timetz", "24:00:00+02"),
        ("jsonb", "1" * 5000),
        ("interval", "-infinity"),
        ("_int4", "[0:1]={1,2}"),
        ("json", "1e999"),
        ("json", "[" * 100_000 + "]" * 100_000),
    ],
)
def test_a_value_beyond_pythons_type_keeps_its_text(type_name: str, text: str) -> None:
    found = read(type_name, text)
    assert type(found) is OutOfRange
    assert found == text


def test_numbers_beyond_python_inside_a_document_keep_their_text() -> None:
    long = "7" * 5000
    assert read("jsonb", f'{{"a": [{long}, -1e999, 2]}}') == {"a": [long, "-1e999", 2]}


def test_an_out_of_range_value_shows_what_it_is() -> None:
    assert repr(read("date", "infinity")) == "OutOfRange('infinity')"


@pytest.mark.parametrize(
    ("type_name", "text"),
    [
        ("bool", "true"),
        ("bool", ""),
        ("int4", ""),
        ("int4", "-"),
        ("int4", "1_000"),
        ("int4", " 1"),
        ("int4", "1.0"),
        ("int4", "--1"),
        ("int4", "²"),
        ("float8", "1_0"),
        ("float8", "nan"),
        ("float8", "1e999"),
        ("float8", ""),
        ("numeric", ""),
        ("numeric", "."),
        ("numeric", "1.2.3"),
        ("numeric", "1e5"),
        ("numeric", "sNaN"),
        ("numeric", "1_0"),
        ("numeric", "1,5"),
        ("bytea", "\\xabc"),
        ("bytea", "\\xzz"),
        ("bytea", "\\xde ad"),
        ("bytea", "\\9"),
        ("bytea", "a\\"),
        ("bytea", "é"),
        ("date", "2026-02-30"),
        ("date", "2026-W01-1"),
        ("date", "20260228"),
        ("date", "28.02.2026"),
        ("date", "02/28/2026"),
        ("date", "2026-13-01 BC"),
        ("timestamp", "2026-02-28T01:02:03"),
        ("timestamp", "2026-02-28 01:02"),
        ("timestamp", "2026-02-28 01:02:03.1234567"),
        ("timestamp", "2026-02-28 01:02:03+00"),
        ("timestamp", "2026-02-28 25:00:00"),
        ("timestamptz", "2026-02-28 01:02:03"),
        ("timestamptz", "2026-02-28 01:02:03.1234567+00"),
        ("timestamptz", "2026-02-28 01:02:03,5+00"),
        ("timestamptz", "2026-02-28 01:02:03 UTC"),
        ("timestamptz", "2026-02-28 010203.1+00"),
        ("timestamptz", "Sat Feb 28 01:02:03 2026 UTC"),
        ("timestamptz", "2026-02-30 01:02:03+00"),
        ("time", "24:00:01"),
        ("time", "010203"),
        ("time", "01:02"),
        ("timetz", "01:02:03"),
        ("timetz", "24:00:00"),
        ("uuid", "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d6-bb9bd380a11"),
        ("uuid", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a}"),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a_1"),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a-1"),
        ("inet", ""),
        ("inet", "1.2.3"),
        ("inet", "01.2.3.4"),
        ("inet", "1.2.3.256"),
        ("inet", "1.2.3.4/33"),
        ("inet", "1.2.3.4/024"),
        ("inet", "1.2.3.4/"),
        ("inet", "1.2.3.4/255.255.255.0"),
        ("inet", "::1/129"),
        ("inet", "fe80::1%eth0"),
        ("inet", "FE80::1"),
        ("inet", " ::1"),
        ("cidr", "10.0.0.0"),
        ("cidr", "10.0.0.1/8"),
        ("cidr", "2001:db8::1/32"),
        ("json", ""),
        ("json", "{"),
        ("json", "NaN"),
        ("json", "[-Infinity]"),
        ("json", "1" * 5000 + ","),
    ],
)
def test_text_that_is_no_such_value_is_refused(type_name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read(type_name, text)


@given(st.sampled_from(sorted(set(TYPE_NAMES.values()))), st.text())
def test_no_text_makes_a_converter_raise_anything_but_value_error(name: str, text: str) -> None:
    convert = converter_for(name)
    if convert is None:
        return
    with suppress(ValueError):
        convert(text)


@pytest.mark.parametrize(
    "type_name",
    [
        *("text", "varchar", "bpchar", "name", "char", "xml", "money", "bit", "varbit", "macaddr"),
        *("point", "box", "tsvector", "tsquery", "jsonpath", "pg_lsn", "txid_snapshot", "xid8"),
        *("int2vector", "regclass", "public.mood", "public._mood", "public._int4", "oid 9"),
    ],
)
def test_other_types_stay_text(type_name: str) -> None:
    assert converter_for(type_name) is None


@pytest.mark.parametrize("known", list(psycopg_types), ids=lambda known: known.name)
def test_the_oids_are_those_that_psycopg_knows(known: TypeInfo) -> None:
    name = known.name.strip('"')
    if name in {"record", "void"}:  # no column has them
        return
    assert TYPE_NAMES[known.oid] == name
    if known.array_oid:
        assert TYPE_NAMES[known.array_oid] == f"_{name}"


@given(st.integers())
def test_every_integer_reads_back(value: int) -> None:
    assert read("int8", str(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_reads_back(value: float) -> None:
    assert read("float8", repr(value)) == value


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_every_numeric_reads_back(value: Decimal) -> None:
    assert read("numeric", format(value, "f")).compare_total(Decimal(format(value, "f"))) == 0


@given(st.binary())
def test_both_formats_of_bytea_read_back(value: bytes) -> None:
    escaped = "".join(
        "\\\\" if byte == 0x5C else chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}"
        for byte in value
    )
    assert read("bytea", "\\x" + value.hex()) == value
    assert read("bytea", escaped) == value


@given(
    st.datetimes(timezones=st.integers(-57599, 57599).map(lambda s: timezone(timedelta(seconds=s))))
)
def test_every_timestamp_reads_back(value: datetime) -> None:
    naive = value.replace(tzinfo=None)
    assert read("timestamp", naive.isoformat(" ")) == naive
    text = value.isoformat(" ")
    if text[-6] in "+-":
        text = text.removesuffix(":00")  # as Postgres leaves out minutes that are zero
    assert read("timestamptz", text) == value
    assert read("timetz", text[11:]) == value.timetz()


@given(st.dates(), st.times(), st.uuids())
def test_every_date_time_and_uuid_reads_back(day: date, clock: time, identity: UUID) -> None:
    assert read("date", day.isoformat()) == day
    assert read("time", clock.isoformat()) == clock
    assert read("uuid", str(identity)) == identity


def test_unchanged_is_one_object_however_it_travels() -> None:
    assert pickle.loads(pickle.dumps(UNCHANGED)) is UNCHANGED  # noqa: S301 -- our own bytes
    assert copy.deepcopy(UNCHANGED) is UNCHANGED
    assert repr(UNCHANGED) == str(UNCHANGED) == "UNCHANGED"


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (None, None),
        (True, True),
        (2**53 + 1, 2**53 + 1),
        (1.5, 1.5),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (Decimal("1.50"), "1.50"),
        (Decimal("0.0000000001"), "0.0000000001"),
        (Decimal("NaN"), "NaN"),
        (Decimal("-Infinity"), "-Infinity"),
        (b"\xde\xad", "\\xdead"),
        (date(2026, 2, 28), "2026-02-28"),
        (time(1, 2, 3, tzinfo=UTC), "01:02:03+00:00"),
        (datetime(2026, 2, 28, 1, 2, 3, 4, UTC), "2026-02-28T01:02:03.000004+00:00"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ({"a": [1]}, {"a": [1]}),
        (OutOfRange("infinity"), "infinity"),
        (Interval(14, -3, 14_706_700_000), "P1Y2M-3DT4H5M6.7S"),
        (IPv4Address("192.168.0.1"), "192.168.0.1"),
        (IPv6Address("::1"), "::1"),
        (IPv4Interface("192.168.0.1/24"), "192.168.0.1/24"),
        (IPv6Interface("fe80::a/64"), "fe80::a/64"),
        (IPv4Network("10.0.0.0/8"), "10.0.0.0/8"),
        (IPv6Network("2001:db8::/32"), "2001:db8::/32"),
        ([Decimal("1.50"), None, OutOfRange("infinity")], ["1.50", None, "infinity"]),
        ([[math.nan, 1.0], [b"\0", 2.0]], [["NaN", 1.0], ["\\x00", 2.0]]),
        ([{"a": 1}, [[], {}]], [{"a": 1}, [[], {}]]),
        (Range(1, 5, "[)"), {"lower": 1, "upper": 5, "bounds": "[)"}),
        (
            Range(date(2026, 1, 1), None, "[)"),
            {"lower": "2026-01-01", "upper": None, "bounds": "[)"},
        ),
        (Range(empty=True), {"lower": None, "upper": None, "bounds": "empty"}),
        (
            Multirange([Range(Decimal("1.0"), Decimal(2), "(]")]),
            [{"lower": "1.0", "upper": "2", "bounds": "(]"}],
        ),
        ([Range(None, 1, "()")], [{"lower": None, "upper": 1, "bounds": "()"}]),
    ],
)
def test_the_json_form_of_a_value_is_the_documented_one(value: Any, form: Any) -> None:
    found = jsonable(value)
    assert found == form
    assert json.loads(json.dumps(found, allow_nan=False)) == form


def test_a_document_nested_more_deeply_than_python_can_follow_has_a_json_form() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    found = jsonable(deep)
    for _ in range(100_000):
        [found] = found
    assert found == []


def test_unchanged_has_no_json_form() -> None:
    with pytest.raises(BadInput, match="leave the column out"):
        jsonable(UNCHANGED)


def test_an_object_that_no_converter_returns_has_no_json_form() -> None:
    with pytest.raises(BadInput, match="A complex has no JSON form"):
        jsonable(1j)
