"""Named timers of one machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fsm.machine.engine import SetTimer
from fsm.runtime.clock import Clock, TimerHandle


@dataclass(frozen=True, slots=True)
class _Running:
    handle: TimerHandle
    due: float
    setting: SetTimer


class Timers:
    """Sets, cancels and repeats timers by name.

    Args:
        clock: what they run on.
        fire: called with the trigger and the visit that set the timer.
    """

    def __init__(self, clock: Clock, fire: Callable[[str, int], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._running: dict[str, _Running] = {}

    def set(self, setting: SetTimer, visit: int) -> None:
        """Set a timer; one of the same name is replaced."""
        self.cancel(setting.name)
        delay = setting.length + setting.answer_within
        handle = self._clock.call_later(delay, lambda: self._expire(setting, visit))
        self._running[setting.name] = _Running(handle, self._clock.monotonic() + delay, setting)

    def _expire(self, setting: SetTimer, visit: int) -> None:
        del self._running[setting.name]
        if setting.repeat:
            self.set(setting, visit)
        self._fire(setting.trigger, visit)

    def cancel(self, name: str) -> None:
        """Cancel a timer, if it runs."""
        running = self._running.pop(name, None)
        if running is not None:
            running.handle.cancel()

    def cancel_all(self) -> None:
        """Cancel what runs."""
        for name in list(self._running):
            self.cancel(name)

    def remaining(self, name: str) -> float | None:
        """Give the seconds until a timer fires; None where it does not run."""
        running = self._running.get(name)
        return max(0.0, running.due - self._clock.monotonic()) if running else None

    def length(self, name: str) -> float | None:
        """Give the length a timer was set to, without the time for an answer, in seconds."""
        running = self._running.get(name)
        return running.setting.length if running else None
