from __future__ import annotations

import pickle
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import BadInput
from fsm.postgres.interval import Interval, read_interval
from fsm.postgres.markers import OutOfRange

HOUR = 3_600_000_000


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("00:00:00", (0, 0, 0)),
        ("1 year", (12, 0, 0)),
        ("-1 years", (-12, 0, 0)),
        ("1 mon", (1, 0, 0)),
        ("2 mons", (2, 0, 0)),
        ("1 day", (0, 1, 0)),
        ("-1 days", (0, -1, 0)),
        ("1 year 2 mons -3 days +04:05:06.7", (14, -3, 14_706_700_000)),
        ("-1 years -2 mons +3 days -04:05:06.000001", (-14, 3, -14_706_000_001)),
        ("1 mon -00:00:01", (1, 0, -1_000_000)),
        ("-00:00:00.000001", (0, 0, -1)),
        ("100:00:00", (0, 0, 100 * HOUR)),
        ("178956970 years 7 mons", (2**31 - 1, 0, 0)),
        ("-178956970 years -8 mons", (-(2**31), 0, 0)),
        ("2147483647 days", (0, 2**31 - 1, 0)),
        ("2562047788:00:54.775807", (0, 0, 2**63 - 1)),
        ("-2562047788:00:54.775808", (0, 0, -(2**63))),
    ],
)
def test_months_days_and_microseconds_are_kept_apart(
    text: str, parts: tuple[int, int, int]
) -> None:
    assert read_interval(text) == Interval(*parts)


@pytest.mark.parametrize("text", ["infinity", "-infinity"])
def test_an_infinite_interval_keeps_its_text(text: str) -> None:
    found = read_interval(text)
    assert type(found) is OutOfRange
    assert found == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1",
        "1 year ",
        " 1 year",
        "1 year\n",
        "1 year2 mons",
        "1 mon 1 year",
        "1 day 1 day",
        "1  day",
        "1.5 days",
        "\u0661 day",
        "1 week",
        "00:00",
        "0:00:00",
        "00:60:00",
        "00:00:60",
        "00:00:00.",
        "00:00:00.1234567",
        "+-01:00:00",
        "01:00:00 1 day",
        "P1Y",
        "1 year 2 mons ago",
        "@ 1 day",
        "1-2",
        "Infinity",
    ],
)
def test_text_that_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no interval"):
        read_interval(text)


def written(months: int, days: int, microseconds: int) -> str:
    """Write an interval as IntervalStyle=postgres does."""
    parts: list[str] = []
    before = False
    for number, unit in (
        (int(months / 12), "year"),
        (months - 12 * int(months / 12), "mon"),
        (days, "day"),
    ):
        if number:
            sign = "+" if before and number > 0 else ""
            parts.append(f"{sign}{number} {unit}{'' if number == 1 else 's'}")
            before = number < 0
    if microseconds or not parts:
        seconds, fraction = divmod(abs(microseconds), 1_000_000)
        sign = "-" if microseconds < 0 else "+" if before else ""
        clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        parts.append(sign + clock + (f".{fraction:06d}".rstrip("0") if fraction else ""))
    return " ".join(parts)


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
)
def test_every_interval_reads_back(months: int, days: int, microseconds: int) -> None:
    found = read_interval(written(months, days, microseconds))
    assert found == Interval(months, days, microseconds)


@given(st.timedeltas())
def test_an_interval_without_months_is_a_timedelta(length: timedelta) -> None:
    microseconds = length // timedelta(microseconds=1)
    assert Interval(0, 0, microseconds).to_timedelta() == length
    assert Interval(0, length.days, microseconds - length.days * 24 * HOUR).to_timedelta() == length


def test_an_interval_with_months_refuses_to_be_a_timedelta() -> None:
    with pytest.raises(BadInput, match=r"with months \(-1\) has no fixed length"):
        Interval(-1, 30, 0).to_timedelta()


def test_an_interval_longer_than_a_timedelta_is_refused() -> None:
    with pytest.raises(BadInput, match="of 2147483647 days is longer"):
        Interval(0, 2**31 - 1, 0).to_timedelta()


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0, 0, 0), "PT0S"),
        (Interval(14, -3, 14_706_700_000), "P1Y2M-3DT4H5M6.7S"),
        (Interval(-14, 3, -14_706_000_001), "P-1Y-2M3DT-4H-5M-6.000001S"),
        (Interval(12, 0, 0), "P1Y"),
        (Interval(0, 1, 0), "P1D"),
        (Interval(0, 0, -500_000), "PT-0.5S"),
        (Interval(0, 0, HOUR), "PT1H"),
    ],
)
def test_the_iso_form_is_that_of_postgres(interval: Interval, text: str) -> None:
    assert interval.isoformat() == text


def test_an_interval_is_a_value() -> None:
    month = Interval(1, 0, 0)
    assert month == Interval(1, 0, 0)
    assert len({month, Interval(1, 0, 0)}) == 1
    assert month != Interval(0, 30, 0)
    assert pickle.loads(pickle.dumps(month)) == month  # noqa: S301 -- our own bytes
