from __future__ import annotations

import pytest

from fsm.machine.engine import SetTimer
from fsm.runtime.timers import Timers
from fsm.testing import VirtualClock


class _Fired:
    """Timers on a clock of their own, and what they fired when."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.seen: list[tuple[float, str, int]] = []
        self.timers = Timers(self.clock, self._note)

    def _note(self, trigger: str, visit: int) -> None:
        self.seen.append((self.clock.monotonic(), trigger, visit))


def _timer(
    length: float, *, name: str = "one", within: float = 0.0, repeat: bool = False
) -> SetTimer:
    return SetTimer(name, f"{name}_due", length, within, repeat)


@pytest.mark.asyncio
async def test_a_timer_fires_once_with_its_trigger_and_the_visit_that_set_it() -> None:
    fired = _Fired()
    fired.timers.set(_timer(5), visit=3)
    await fired.clock.advance(4.9)
    assert fired.seen == []
    await fired.clock.advance(20)
    assert fired.seen == [(5.0, "one_due", 3)]


@pytest.mark.asyncio
async def test_the_time_for_an_answer_is_added() -> None:
    fired = _Fired()
    fired.timers.set(_timer(5, within=2), visit=1)
    assert fired.timers.length("one") == 5
    assert fired.timers.remaining("one") == 7
    await fired.clock.advance(7)
    assert [when for when, _, _ in fired.seen] == [7.0]


@pytest.mark.asyncio
async def test_a_repeated_timer_fires_until_it_is_cancelled() -> None:
    fired = _Fired()
    fired.timers.set(_timer(2, repeat=True), visit=1)
    await fired.clock.advance(7)
    fired.timers.cancel("one")
    await fired.clock.advance(7)
    assert [when for when, _, _ in fired.seen] == [2.0, 4.0, 6.0]


@pytest.mark.asyncio
async def test_a_repeated_timer_may_be_cancelled_by_what_it_fires() -> None:
    clock = VirtualClock()
    seen: list[str] = []

    def fire(trigger: str, _: int) -> None:
        seen.append(trigger)
        timers.cancel("one")

    timers = Timers(clock, fire)
    timers.set(_timer(2, repeat=True), visit=1)
    await clock.advance(10)
    assert seen == ["one_due"]


@pytest.mark.asyncio
async def test_setting_a_timer_again_replaces_it() -> None:
    fired = _Fired()
    fired.timers.set(_timer(2), visit=1)
    fired.timers.set(_timer(6), visit=2)
    await fired.clock.advance(10)
    assert fired.seen == [(6.0, "one_due", 2)]


@pytest.mark.asyncio
async def test_a_cancelled_timer_does_not_fire() -> None:
    fired = _Fired()
    fired.timers.set(_timer(2), visit=1)
    fired.timers.cancel("one")
    await fired.clock.advance(10)
    assert fired.seen == []
    assert fired.timers.remaining("one") is None


def test_cancelling_what_does_not_run_is_no_error() -> None:
    _Fired().timers.cancel("another")


@pytest.mark.asyncio
async def test_timers_are_known_by_name() -> None:
    fired = _Fired()
    fired.timers.set(_timer(2, name="one"), visit=1)
    fired.timers.set(_timer(3, name="two"), visit=1)
    fired.timers.cancel("one")
    await fired.clock.advance(10)
    assert fired.seen == [(3.0, "two_due", 1)]


@pytest.mark.asyncio
async def test_all_are_cancelled_together() -> None:
    fired = _Fired()
    fired.timers.set(_timer(2, name="one"), visit=1)
    fired.timers.set(_timer(3, name="two", repeat=True), visit=1)
    fired.timers.cancel_all()
    assert fired.clock.next_due() is None


@pytest.mark.asyncio
async def test_the_remaining_time_shrinks_and_is_unknown_after_the_end() -> None:
    fired = _Fired()
    fired.timers.set(_timer(5), visit=1)
    await fired.clock.advance(3)
    assert fired.timers.remaining("one") == 2
    await fired.clock.advance(3)
    assert fired.timers.remaining("one") is None
    assert fired.timers.length("one") is None
