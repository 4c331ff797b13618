"""Scalars: the text of numbers, dates, times, addresses and documents -> Python values.

Each function takes the text of one value and returns the Python value, or raises ValueError: it
never guesses.
"""

from __future__ import annotations

import json
import re
from binascii import unhexlify
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
from math import isfinite, isinf
from typing import Any, TypeAlias
from uuid import UUID

from fsm.postgres.markers import OutOfRange

Inet: TypeAlias = IPv4Address | IPv6Address | IPv4Interface | IPv6Interface
Cidr: TypeAlias = IPv4Network | IPv6Network

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


# The classes of ipaddress would also take masks of four bytes, scopes, capitals and, for a network,
# a lone address.
_INET = re.compile(r"[0-9a-f:.]+(/(?:0|[1-9][0-9]{0,2}))?")


def read_inet(text: str) -> Inet:
    """An address; with ``/`` and the length of the network's prefix it is an interface."""
    found = _INET.fullmatch(text)
    if found is None:
        raise ValueError("no inet")
    if found[1] is None:
        return IPv6Address(text) if ":" in text else IPv4Address(text)
    return IPv6Interface(text) if ":" in text else IPv4Interface(text)


def read_cidr(text: str) -> Cidr:
    """A network: address, ``/``, length of the prefix; no bit is set beyond the prefix."""
    found = _INET.fullmatch(text)
    if found is None or found[1] is None:
        raise ValueError("no cidr")
    return IPv6Network(text) if ":" in text else IPv4Network(text)


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
