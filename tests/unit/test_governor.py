"""The governor's bucket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.machine.governor import Governor


def taken(governor: Governor, *times: float) -> list[bool]:
    return [governor.take(now) for now in times]


def test_a_burst_is_allowed_at_once_and_no_more() -> None:
    assert taken(Governor(rate=1, burst=3), 0, 0, 0, 0) == [True, True, True, False]


def test_tokens_come_back_at_the_rate() -> None:
    governor = Governor(rate=2, burst=1)
    assert taken(governor, 10, 10.4, 10.5, 10.9, 11) == [True, False, True, False, True]


def test_no_rest_saves_up_more_than_the_burst() -> None:
    governor = Governor(rate=1, burst=2)
    assert taken(governor, 0, *[1e6] * 3) == [True, True, True, False]


def test_what_is_refused_costs_nothing() -> None:
    governor = Governor(rate=1, burst=1)
    assert taken(governor, 0, *[0.5] * 100, 1) == [True, *[False] * 100, True]


def test_it_counts_its_interventions() -> None:
    governor = Governor(rate=1, burst=1)
    taken(governor, 0, 0, 0, 5)
    assert governor.interventions == 2


def test_a_clock_that_goes_back_gives_nothing() -> None:
    governor = Governor(rate=1, burst=1)
    assert taken(governor, 100, 50, 50.9) == [True, False, False]


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 5), (-1.0, 5), (1.0, 0)])
def test_a_governor_that_allows_nothing_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="a rate above 0 and a burst of at least 1"):
        Governor(rate, burst)


@given(
    st.floats(0.01, 100),
    st.integers(1, 20),
    st.lists(st.floats(0, 10), min_size=1, max_size=200),
)
def test_no_pattern_of_asking_gets_more_than_burst_and_rate(
    rate: float, burst: int, gaps: list[float]
) -> None:
    governor = Governor(rate, burst)
    now, times = 0.0, []
    for gap in gaps:
        now += gap
        if governor.take(now):
            times.append(now)
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            allowed = burst + (times[last] - start) * rate
            assert last - first + 1 <= allowed + 1e-6


@given(st.floats(0.01, 100), st.integers(1, 20), st.floats(0, 1e6))
def test_after_its_pause_there_is_always_a_token(rate: float, burst: int, begin: float) -> None:
    governor = Governor(rate, burst)
    while governor.take(begin):
        pass
    assert governor.take(begin + governor.pause * (1 + 1e-9) + 1e-9)
