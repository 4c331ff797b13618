"""Postgres' text form of values -> Python values, and from there to JSON.

A converter takes the text of one value and returns the Python value, or raises ValueError: it
never guesses. It reads the output that the session asks for: ``DateStyle=ISO``,
``IntervalStyle=postgres``, ``extra_float_digits=3``, ``client_encoding=UTF8``; bytea in either of
its formats. docs/types.md has the whole table.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from math import isfinite, isnan
from types import NoneType
from typing import Any, Final
from uuid import UUID

from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from fsm.errors import BadInput
from fsm.postgres import scalars
from fsm.postgres.containers import (
    MAX_DIMENSIONS,
    Converter,
    array_of,
    array_of_boxes,
    multirange_of,
    range_of,
)
from fsm.postgres.interval import Interval, read_interval
from fsm.postgres.markers import UNCHANGED, OutOfRange, Unchanged
from fsm.postgres.type_names import TYPE_NAMES

__all__ = [
    "TYPE_NAMES",
    "UNCHANGED",
    "Converter",
    "Interval",
    "OutOfRange",
    "Unchanged",
    "array_of",
    "converter_for",
    "jsonable",
    "multirange_of",
    "range_of",
]

_SCALARS: Final[dict[str, Converter]] = {
    "bool": scalars.read_bool,
    "bytea": scalars.read_bytea,
    "int2": scalars.read_int,
    "int4": scalars.read_int,
    "int8": scalars.read_int,
    "oid": scalars.read_int,
    "float4": scalars.read_float,
    "float8": scalars.read_float,
    "numeric": scalars.read_numeric,
    "date": scalars.read_date,
    "time": scalars.read_time,
    "timetz": scalars.read_timetz,
    "timestamp": scalars.read_timestamp,
    "timestamptz": scalars.read_timestamptz,
    "interval": read_interval,
    "uuid": scalars.read_uuid,
    "inet": scalars.read_inet,
    "cidr": scalars.read_cidr,
    "json": scalars.read_json,
    "jsonb": scalars.read_json,
}

_BOUNDS: Final[dict[str, Converter]] = {
    "int4": scalars.read_int,
    "int8": scalars.read_int,
    "num": scalars.read_numeric,
    "date": scalars.read_date,
    "ts": scalars.read_timestamp,
    "tstz": scalars.read_timestamptz,
}
"""What the name of a range type begins with -> how its bounds are read."""

_ELEMENTS: Final[dict[str, Converter]] = {
    **_SCALARS,
    **{f"{name}range": range_of(convert) for name, convert in _BOUNDS.items()},
    **{f"{name}multirange": multirange_of(convert) for name, convert in _BOUNDS.items()},
}

_CONVERTERS: Final[dict[str, Converter]] = {
    **_ELEMENTS,
    **{
        name: array_of(_ELEMENTS.get(name.removeprefix("_")))
        for name in TYPE_NAMES.values()
        if name.startswith("_")
    },
    "_box": array_of_boxes(),
}


def converter_for(type_name: str) -> Converter | None:
    """Find the converter of a type.

    Args:
        type_name: the name of a type of pg_catalog, or ``schema.name`` of any other. An array type
            has an underscore before the name of its elements' type.

    Returns:
        The converter, or None where the value stays text.
    """
    return _CONVERTERS.get(type_name)


def jsonable(value: Any) -> Any:
    r"""Turn a value of a row into one that ``json.dumps`` takes, without loss.

    Args:
        value: what a converter returned, or None.

    Returns:
        None, bool, int, finite floats, str and parsed JSON as they are; other floats and Decimal
        as text (``"NaN"``, ``"12.50"``); date and time types and intervals in ISO 8601; UUID,
        addresses and networks as text; bytes as ``\x`` and hexadecimal digits; arrays and
        multiranges as lists; a range as a dict of ``lower``, ``upper`` and ``bounds``, which are
        its brackets (``"[)"``) or ``"empty"``.

    Raises:
        BadInput: for ``UNCHANGED``, which stands for a value that is not known, and for objects
            that no converter returns.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    form = _FORMS.get(kind)
    if form is not None:
        return form(value)
    if value is UNCHANGED:
        raise BadInput("UNCHANGED has no JSON form: leave the column out of what you write.")
    raise BadInput(f"A {kind.__name__} has no JSON form here: convert it first.")


def _float_form(value: float) -> float | str:
    if isfinite(value):
        return value
    if isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _decimal_form(value: Decimal) -> str:
    return format(value, "f")


def _bytes_form(value: bytes) -> str:
    return "\\x" + value.hex()


def _list_form(value: list[Any]) -> list[Any]:
    return _items_form(value, MAX_DIMENSIONS)


def _items_form(items: list[Any], dimensions: int) -> list[Any]:
    # What is nested more deeply than an array can be is JSON, at whatever depth: it stays.
    if not dimensions:
        return items
    return [
        _items_form(item, dimensions - 1) if type(item) is list else jsonable(item)
        for item in items
    ]


def _range_form(value: Range[Any]) -> dict[str, Any]:
    return {
        "lower": jsonable(value.lower),
        "upper": jsonable(value.upper),
        "bounds": value.bounds or "empty",
    }


def _multirange_form(value: Multirange[Any]) -> list[dict[str, Any]]:
    return [_range_form(item) for item in value]


_PLAIN: Final[frozenset[type]] = frozenset({NoneType, bool, int, str, OutOfRange, dict})

_FORMS: Final[dict[type, Callable[[Any], Any]]] = {
    float: _float_form,
    Decimal: _decimal_form,
    bytes: _bytes_form,
    date: date.isoformat,
    datetime: datetime.isoformat,
    time: time.isoformat,
    Interval: Interval.isoformat,
    UUID: str,
    IPv4Address: str,
    IPv6Address: str,
    IPv4Interface: str,
    IPv6Interface: str,
    IPv4Network: str,
    IPv6Network: str,
    list: _list_form,
    Range: _range_form,
    Multirange: _multirange_form,
}
