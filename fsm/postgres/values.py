"""Postgres' text form of values -> Python values.

A converter takes the text of one value and returns the Python value, or raises ValueError: it
never guesses. It reads the output that the session asks for: ``DateStyle=ISO``,
``IntervalStyle=postgres``, ``extra_float_digits=3``, ``client_encoding=UTF8``; bytea in either of
its formats. docs/types.md has the whole table.
"""

from __future__ import annotations

import json
import re
from binascii import unhexlify
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from math import isfinite, isinf
from types import MappingProxyType
from typing import Any, Final, TypeAlias
from uuid import UUID

from fsm.errors import BadInput

Converter: TypeAlias = Callable[[str], Any]


class Unchanged(Enum):
    """The type of ``UNCHANGED``, for annotations."""

    UNCHANGED = "UNCHANGED"

    def __repr__(self) -> str:
        return "UNCHANGED"

    __str__ = __repr__


UNCHANGED: Final = Unchanged.UNCHANGED
"""A TOASTed value that the update did not touch and the server therefore did not send.

It says nothing about the value: it is not NULL. Compare with ``is``. Its source is the column kind
``u`` (Postgres docs, "Logical Replication Message Formats", TupleData).
"""


class OutOfRange(str):
    """A valid Postgres value that the Python type of its column cannot hold: its text, unchanged.

    Such are ``infinity``, dates before the year 1 or after 9999, the time ``24:00:00``, and JSON
    numbers or documents beyond what Python's parser takes.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"OutOfRange({super().__repr__()})"


_FLOAT = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|Infinity)|NaN")
_NUMERIC = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|Infinity)|NaN")

_DAY = r"(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_CLOCK = r"[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
_OFFSET = r"[+-][0-9]{2}(?::[0-9]{2}){0,2}"


def _beyond(rest: str) -> re.Pattern[str]:
    """Dates that Python has no value for, where ``rest`` is what follows month and day."""
    common = rf"-{_DAY}{rest}"
    return re.compile(rf"-?infinity|[0-9]{{4,}}{common} BC|[0-9]{{5,}}{common}")


_BEYOND_DATE = _beyond("")
_BEYOND_TIMESTAMP = _beyond(f" {_CLOCK}")
_BEYOND_TIMESTAMPTZ = _beyond(f" {_CLOCK}{_OFFSET}")
_TIMESTAMP = re.compile(rf"[0-9]{{4}}-{_DAY} {_CLOCK}")
_TIMESTAMPTZ = re.compile(rf"[0-9]{{4}}-{_DAY} {_CLOCK}{_OFFSET}")
_TIME = re.compile(_CLOCK)
_TIMETZ = re.compile(_CLOCK + _OFFSET)
_MIDNIGHT_AT_THE_END = re.compile(r"24:00:00(?:\.0{1,6})?")
_MIDNIGHT_AT_THE_END_TZ = re.compile(rf"24:00:00(?:\.0{{1,6}})?{_OFFSET}")


def _out_of_range(text: str, pattern: re.Pattern[str], what: str) -> OutOfRange:
    if pattern.fullmatch(text) is None:
        raise ValueError(f"no {what}")
    return OutOfRange(text)


def read_bool(text: str) -> bool:
    """``t`` or ``f``."""
    if text == "t":
        return True
    if text == "f":
        return False
    raise ValueError("no boolean")


def read_int(text: str) -> int:
    """Decimal digits, perhaps after a minus."""
    # int() alone would also take underscores and surrounding space.
    if text.isdecimal() or (text[:1] == "-" and text[1:].isdecimal()):
        return int(text)
    raise ValueError("no integer")


def read_float(text: str) -> float:
    """The shortest text that gives the number back; ``NaN``, ``Infinity``, ``-Infinity``."""
    if _FLOAT.fullmatch(text) is None:
        raise ValueError("no floating-point number")
    value = float(text)
    if isinf(value) and "I" not in text:
        raise ValueError("a number beyond double precision")
    return value


def read_numeric(text: str) -> Decimal:
    """All digits of the number, its scale kept; ``NaN``, ``Infinity``, ``-Infinity``."""
    # Most are plain and positive; the rest is worth a pattern. Decimal() is exact in any context,
    # and alone would also take underscores, surrounding space and exponents.
    if text.replace(".", "", 1).isdecimal() or _NUMERIC.fullmatch(text):
        return Decimal(text)
    raise ValueError("no numeric")


def read_bytea(text: str) -> bytes:
    """The hex format or the escape format (Postgres docs, "Binary Data Types")."""
    if text.startswith("\\x"):
        return unhexlify(text[2:])
    return _ESCAPE.sub(_unescape, text.encode("ascii"))


_ESCAPE = re.compile(rb"\\(\\|[0-3][0-7]{2}|)")


def _unescape(found: re.Match[bytes]) -> bytes:
    escaped = found[1]
    if escaped == b"\\":
        return escaped
    return bytes((int(escaped, 8),))


def read_date(text: str) -> date | OutOfRange:
    """``YYYY-MM-DD``; ``OutOfRange`` for infinity, BC and years after 9999."""
    # fromisoformat alone would also take week dates and dates without hyphens.
    if len(text) == 10 and text[4] == text[7] == "-":  # noqa: PLR2004 -- places in YYYY-MM-DD
        return date.fromisoformat(text)
    return _out_of_range(text, _BEYOND_DATE, "date")


def read_timestamp(text: str) -> datetime | OutOfRange:
    """``YYYY-MM-DD HH:MM:SS[.ffffff]``, naive; ``OutOfRange`` as for dates."""
    if _TIMESTAMP.fullmatch(text):
        return datetime.fromisoformat(text)
    return _out_of_range(text, _BEYOND_TIMESTAMP, "timestamp")


def read_timestamptz(text: str) -> datetime | OutOfRange:
    """``YYYY-MM-DD HH:MM:SS[.ffffff]+OO[:MM[:SS]]``, aware; ``OutOfRange`` as for dates."""
    # An offset of whole hours is by far the commonest, and these few looks cost a third of the
    # pattern. They keep fromisoformat from what it reads beyond Postgres' form: a comma, other
    # separators, and more than six digits of a fraction, which it drops.
    if (
        22 <= len(text) <= 29  # noqa: PLR2004 -- lengths and places in YYYY-MM-DD HH:MM:SS.ffffff+OO
        and text[10] == " "
        and text[16] == ":"
        and text[19] in ".+-"
        and text[-3] in "+-"
    ):
        return datetime.fromisoformat(text)
    if _TIMESTAMPTZ.fullmatch(text):
        return datetime.fromisoformat(text)
    return _out_of_range(text, _BEYOND_TIMESTAMPTZ, "timestamp with time zone")


def read_time(text: str) -> time | OutOfRange:
    """``HH:MM:SS[.ffffff]``, naive; ``OutOfRange`` for 24:00:00."""
    # Looked at first: newer Pythons read 24:00 as 00:00.
    if text.startswith("24"):
        return _out_of_range(text, _MIDNIGHT_AT_THE_END, "time")
    if _TIME.fullmatch(text) is None:
        raise ValueError("no time")
    return time.fromisoformat(text)


def read_timetz(text: str) -> time | OutOfRange:
    """``HH:MM:SS[.ffffff]+OO[:MM[:SS]]``, aware; ``OutOfRange`` for 24:00:00."""
    if text.startswith("24"):
        return _out_of_range(text, _MIDNIGHT_AT_THE_END_TZ, "time with time zone")
    if _TIMETZ.fullmatch(text) is None:
        raise ValueError("no time with time zone")
    return time.fromisoformat(text)


def read_uuid(text: str) -> UUID:
    """Thirty-two hexadecimal digits in five groups."""
    # UUID() alone would also take braces, urn: and underscores, and hyphens anywhere.
    if len(text) == 36 and text[8] == text[13] == text[18] == text[23] == "-":  # noqa: PLR2004 -- places of the hyphens
        return UUID(bytes=unhexlify(text.replace("-", "")))
    raise ValueError("no uuid")


def read_json(text: str) -> Any:
    """The parsed document.

    Numbers with a point or an exponent become floats, as ``json.loads`` makes them; a number or a
    document that Python's parser cannot take becomes ``OutOfRange``.
    """
    try:
        return _parse_json(text)
    except RecursionError:
        return OutOfRange(text)


def _parse_json(text: str) -> Any:
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        # int() refuses more than sys.get_int_max_str_digits() digits; Postgres does not.
        return _JSON_OF_LONG_NUMBERS.decode(text)


def _json_float(text: str) -> float | OutOfRange:
    value = float(text)
    return value if isfinite(value) else OutOfRange(text)


def _json_int(text: str) -> int | OutOfRange:
    try:
        return int(text)
    except ValueError:
        return OutOfRange(text)


def _json_constant(text: str) -> Any:
    raise json.JSONDecodeError(f"{text} is no JSON", text, 0)


_JSON = json.JSONDecoder(parse_float=_json_float, parse_constant=_json_constant)
_JSON_OF_LONG_NUMBERS = json.JSONDecoder(
    parse_float=_json_float, parse_int=_json_int, parse_constant=_json_constant
)

TYPE_NAMES: Final = MappingProxyType(
    {
        16: "bool",
        17: "bytea",
        18: "char",
        19: "name",
        20: "int8",
        21: "int2",
        23: "int4",
        25: "text",
        26: "oid",
        114: "json",
        142: "xml",
        600: "point",
        650: "cidr",
        700: "float4",
        701: "float8",
        790: "money",
        829: "macaddr",
        869: "inet",
        1000: "_bool",
        1005: "_int2",
        1007: "_int4",
        1009: "_text",
        1015: "_varchar",
        1016: "_int8",
        1022: "_float8",
        1042: "bpchar",
        1043: "varchar",
        1082: "date",
        1083: "time",
        1114: "timestamp",
        1184: "timestamptz",
        1186: "interval",
        1231: "_numeric",
        1266: "timetz",
        1560: "bit",
        1562: "varbit",
        1700: "numeric",
        2950: "uuid",
        2951: "_uuid",
        3614: "tsvector",
        3802: "jsonb",
    }
)
"""OID -> name of the built-in types that have a converter or are common (pg_type.dat).

The server names the other types in Type messages; for built-in ones it sends none.
"""

_CONVERTERS: dict[str, Converter] = {
    "bool": read_bool,
    "bytea": read_bytea,
    "int2": read_int,
    "int4": read_int,
    "int8": read_int,
    "oid": read_int,
    "float4": read_float,
    "float8": read_float,
    "numeric": read_numeric,
    "date": read_date,
    "time": read_time,
    "timetz": read_timetz,
    "timestamp": read_timestamp,
    "timestamptz": read_timestamptz,
    "uuid": read_uuid,
    "json": read_json,
    "jsonb": read_json,
}


def converter_for(type_name: str) -> Converter | None:
    """Find the converter of a type.

    Args:
        type_name: the name of a type of pg_catalog, or ``schema.name`` of any other.

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
        as text (``"NaN"``, ``"12.50"``); date and time types in ISO 8601; UUID as text; bytes as
        ``\x`` and hexadecimal digits.

    Raises:
        BadInput: for ``UNCHANGED``, which stands for a value that is not known, and for objects
            that no converter returns.
    """
    if value is None or isinstance(value, (bool, int, str, dict, list)):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else _name_of_float(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if value is UNCHANGED:
        raise BadInput("UNCHANGED has no JSON form: leave the column out of what you write.")
    raise BadInput(f"A {type(value).__name__} has no JSON form here: convert it first.")


def _name_of_float(value: float) -> str:
    if value != value:  # noqa: PLR0124 -- only NaN differs from itself
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
