from __future__ import annotations

import asyncio

import pytest

from fsm.runtime.clock import RealClock
from fsm.testing import VirtualClock


def test_it_begins_at_zero_and_at_a_given_time_of_day() -> None:
    clock = VirtualClock(wall=1000.0)
    assert clock.monotonic() == 0
    assert clock.wall() == 1000


@pytest.mark.asyncio
async def test_time_passes_only_when_it_is_told_to() -> None:
    clock = VirtualClock(wall=1000.0)
    await asyncio.sleep(0.01)
    assert clock.monotonic() == 0
    await clock.advance(2.5)
    assert clock.monotonic() == 2.5
    assert clock.wall() == 1002.5


@pytest.mark.asyncio
async def test_calls_come_in_the_order_of_their_time_and_then_of_their_making() -> None:
    clock = VirtualClock()
    seen: list[tuple[float, str]] = []
    for delay, name in ((3, "c"), (1, "a"), (3, "d"), (2, "b")):
        clock.call_later(delay, lambda name=name: seen.append((clock.monotonic(), name)))  # type: ignore[misc]  # a default, as loops bind late
    await clock.advance(3)
    assert seen == [(1, "a"), (2, "b"), (3, "c"), (3, "d")]


@pytest.mark.asyncio
async def test_what_is_due_later_waits() -> None:
    clock = VirtualClock()
    seen: list[float] = []
    clock.call_later(5, lambda: seen.append(clock.monotonic()))
    await clock.advance(4.999)
    assert seen == []
    await clock.advance(0.001)
    assert seen == [5]


@pytest.mark.asyncio
async def test_a_call_made_by_a_call_comes_in_its_own_time() -> None:
    clock = VirtualClock()
    seen: list[float] = []

    def first() -> None:
        clock.call_later(2, lambda: seen.append(clock.monotonic()))

    clock.call_later(1, first)
    await clock.advance(10)
    assert seen == [3]


@pytest.mark.asyncio
async def test_a_cancelled_call_does_not_come_and_is_not_due() -> None:
    clock = VirtualClock()
    seen: list[str] = []
    clock.call_later(1, lambda: seen.append("called")).cancel()
    assert clock.next_due() is None
    await clock.advance(2)
    assert seen == []


@pytest.mark.asyncio
async def test_the_next_call_is_known() -> None:
    clock = VirtualClock()
    clock.call_later(4, lambda: None)
    clock.call_later(2, lambda: None)
    assert clock.next_due() == 2
    await clock.advance(3)
    assert clock.next_due() == 4


@pytest.mark.asyncio
async def test_sleepers_wake_in_their_time() -> None:
    clock = VirtualClock()
    woken: list[tuple[float, int]] = []

    async def sleeper(seconds: int) -> None:
        await clock.sleep(seconds)
        woken.append((clock.monotonic(), seconds))

    async with asyncio.TaskGroup() as group:
        for seconds in (3, 1, 2):
            group.create_task(sleeper(seconds))
        await clock.advance(3)
    assert woken == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.asyncio
async def test_a_cancelled_sleeper_leaves_no_timer() -> None:
    clock = VirtualClock()
    task = asyncio.create_task(clock.sleep(5))
    await clock.settle()
    assert clock.next_due() == 5
    task.cancel()
    await asyncio.wait({task})
    assert clock.next_due() is None


@pytest.mark.asyncio
async def test_it_runs_until_a_condition_holds_and_no_further() -> None:
    clock = VirtualClock()
    seen: list[int] = []
    for second in range(1, 6):
        clock.call_later(second, lambda second=second: seen.append(second))  # type: ignore[misc]  # a default, as loops bind late
    await clock.run_until(lambda: len(seen) == 3)
    assert clock.monotonic() == 3
    assert seen == [1, 2, 3]


@pytest.mark.asyncio
async def test_a_condition_that_holds_already_costs_no_time() -> None:
    clock = VirtualClock()
    clock.call_later(1, lambda: None)
    await clock.run_until(lambda: True)
    assert clock.monotonic() == 0


@pytest.mark.asyncio
async def test_a_condition_that_nothing_will_fulfil_is_given_up() -> None:
    clock = VirtualClock()
    clock.call_later(1, lambda: None)
    with pytest.raises(TimeoutError, match="not within"):
        await clock.run_until(lambda: False)


@pytest.mark.asyncio
async def test_a_condition_that_takes_too_long_is_given_up_before_the_limit_passes() -> None:
    clock = VirtualClock()

    def again() -> None:
        clock.call_later(10, again)

    again()
    with pytest.raises(TimeoutError, match="not within 95 virtual seconds"):
        await clock.run_until(lambda: False, limit=95)
    assert clock.monotonic() == 90


@pytest.mark.asyncio
async def test_awkward_fractions_of_seconds_do_not_stall_it() -> None:
    clock = VirtualClock()
    seen: list[float] = []

    def again() -> None:
        seen.append(clock.monotonic())
        clock.call_later(0.1 + len(seen) * 1e-9, again)

    again()
    await clock.run_until(lambda: len(seen) == 500)
    assert seen == sorted(seen)


@pytest.mark.asyncio
async def test_the_real_clock_follows_the_event_loop() -> None:
    clock = RealClock()
    before = clock.monotonic()
    called = asyncio.Event()
    clock.call_later(0.01, called.set)
    await clock.sleep(0.02)
    assert called.is_set()
    assert 0.015 <= clock.monotonic() - before < 5
    assert clock.wall() > 1_700_000_000
