"""The clock that everything waits on, so that tests can own time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class TimerHandle(Protocol):
    """A pending call."""

    def cancel(self) -> None:
        """Forget it."""


class Clock(Protocol):
    """Time and waiting; seconds throughout."""

    def monotonic(self) -> float:
        """Give seconds that never go back."""

    def wall(self) -> float:
        """Give seconds since 1970, as people count."""

    def call_later(self, delay: float, callback: Callable[[], object]) -> TimerHandle:
        """Call back after ``delay`` seconds, from the event loop."""

    async def sleep(self, delay: float) -> None:
        """Wait for ``delay`` seconds."""


class RealClock:
    """The event loop's clock."""

    def monotonic(self) -> float:
        """Give the event loop's time."""
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        """Give the system's time."""
        return time.time()

    def call_later(self, delay: float, callback: Callable[[], object]) -> TimerHandle:
        """Use the event loop's timers."""
        return asyncio.get_running_loop().call_later(delay, callback)

    async def sleep(self, delay: float) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(delay)
