"""Intervals: months, days and microseconds, which Postgres keeps apart and so do we."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from fsm.errors import BadInput
from fsm.postgres.markers import OutOfRange

_SECOND: Final = 1_000_000
_MINUTE: Final = 60 * _SECOND
_HOUR: Final = 60 * _MINUTE


@dataclass(frozen=True, slots=True)
class Interval:
    """A Postgres interval, exactly as the server stores it (``Interval`` in its timestamp.h).

    A month has no fixed number of days, nor a day of hours, so none is turned into another, and
    two intervals are equal when all three parts are: ``Interval(1, 0, 0) != Interval(0, 30, 0)``,
    which Postgres' own ``=`` takes for equal.

    Attributes:
        months: months, a year being twelve.
        days: days.
        microseconds: hours, minutes and seconds together.
    """

    months: int
    days: int
    microseconds: int

    def to_timedelta(self) -> timedelta:
        """Give the same length of time, a day taken for 24 hours.

        Raises:
            BadInput: it has months, which have no fixed length, or is longer than a timedelta.
        """
        if self.months:
            raise BadInput(
                f"An interval with months ({self.months}) has no fixed length: add the months to a"
                " date, and only then take the difference."
            )
        try:
            return timedelta(days=self.days, microseconds=self.microseconds)
        except OverflowError:
            raise BadInput(
                f"An interval of {self.days} days is longer than a timedelta can be."
            ) from None

    def isoformat(self) -> str:
        """Write it as an ISO 8601 duration: ``P1Y2M-3DT4H5M6.7S``, ``PT0S``.

        The text is that of ``IntervalStyle=iso_8601``, and Postgres reads it back as the same
        interval (Postgres docs, "Interval Input").
        """
        years, months = _quotient(self.months, 12)
        hours, rest = _quotient(self.microseconds, _HOUR)
        minutes, rest = _quotient(rest, _MINUTE)
        day = _part(years, "Y") + _part(months, "M") + _part(self.days, "D")
        clock = _part(hours, "H") + _part(minutes, "M") + _seconds(rest)
        if not day and not clock:
            return "PT0S"
        return f"P{day}T{clock}" if clock else f"P{day}"


def _quotient(number: int, divisor: int) -> tuple[int, int]:
    """Quotient and remainder, both with the sign of ``number``, as C has them."""
    quotient, remainder = divmod(abs(number), divisor)
    return (quotient, remainder) if number >= 0 else (-quotient, -remainder)


def _part(number: int, unit: str) -> str:
    return f"{number}{unit}" if number else ""


def _seconds(microseconds: int) -> str:
    if not microseconds:
        return ""
    seconds, fraction = divmod(abs(microseconds), _SECOND)
    sign = "-" if microseconds < 0 else ""
    digits = f".{fraction:06d}".rstrip("0") if fraction else ""
    return f"{sign}{seconds}{digits}S"


_NUMBER = r"([+-]?[0-9]{1,10})"
_INTERVAL = re.compile(
    rf"(?:{_NUMBER} years?(?: |\Z))?(?:{_NUMBER} mons?(?: |\Z))?(?:{_NUMBER} days?(?: |\Z))?"
    r"(?:([+-]?)([0-9]{2,10}):([0-5][0-9]):([0-5][0-9])(?:\.([0-9]{1,6}))?)?"
)
_INFINITE = frozenset({"infinity", "-infinity"})


def read_interval(text: str) -> Interval | OutOfRange:
    """``1 year 2 mons -3 days +04:05:06.7``, parts that are zero left out; ``00:00:00``.

    The form is that of ``IntervalStyle=postgres``. A sign of the clock holds for all of the clock.

    Returns:
        The interval; ``OutOfRange`` for the infinite ones (Postgres 17 and later).

    Raises:
        ValueError: it is no such text.
    """
    found = _INTERVAL.fullmatch(text)
    if found is None or not text or text[-1] == " ":
        if text in _INFINITE:
            return OutOfRange(text)
        raise ValueError("no interval")
    years, months, days, sign, hours, minutes, seconds, fraction = found.groups()
    microseconds = 0
    if hours is not None:
        microseconds = int(hours) * _HOUR + int(minutes) * _MINUTE + int(seconds) * _SECOND
        if fraction is not None:
            microseconds += int(fraction.ljust(6, "0"))
        if sign == "-":
            microseconds = -microseconds
    return Interval(int(years or 0) * 12 + int(months or 0), int(days or 0), microseconds)
