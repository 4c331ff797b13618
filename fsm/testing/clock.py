"""A clock that tests own."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

SETTLING: Final = 50
"""Rounds of the event loop in which what is ready runs its course, with sessions in memory."""


@dataclass(order=True)
class _Entry:
    due: float
    order: int
    callback: Callable[[], object] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class VirtualClock:
    """Stands still until told to advance; then runs what is due, in order.

    Args:
        wall: seconds since 1970 at which it begins.
    """

    def __init__(self, wall: float = 1_750_000_000.0) -> None:
        self._now = 0.0
        self._wall = wall
        self._entries: list[_Entry] = []
        self._order = 0

    def monotonic(self) -> float:
        """Give the virtual seconds that have passed."""
        return self._now

    def wall(self) -> float:
        """Give the virtual time of day."""
        return self._wall + self._now

    def call_later(self, delay: float, callback: Callable[[], object]) -> _Entry:
        """Call back when the clock has advanced by ``delay`` seconds."""
        self._order += 1
        entry = _Entry(self._now + max(0.0, delay), self._order, callback)
        heapq.heappush(self._entries, entry)
        return entry

    async def sleep(self, delay: float) -> None:
        """Wait until the clock has advanced by ``delay`` seconds."""
        over = asyncio.Event()
        entry = self.call_later(delay, over.set)
        try:
            await over.wait()
        finally:
            entry.cancel()

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, timer by timer."""
        end = self._now + seconds
        await self.settle()
        while (due := self.next_due()) is not None and due <= end:
            self._now = due
            heapq.heappop(self._entries).callback()
            await self.settle()
        self._now = end

    async def run_until(self, condition: Callable[[], bool], limit: float = 86_400.0) -> None:
        """Let time pass, timer by timer, until ``condition`` holds.

        Raises:
            TimeoutError: it does not within ``limit`` virtual seconds, or nothing is left to
            happen.
        """
        end = self._now + limit
        await self.settle()
        while not condition():
            due = self.next_due()
            if due is None or due > end:
                raise TimeoutError(f"not within {limit:g} virtual seconds")
            await self.advance(due - self._now)

    def next_due(self) -> float | None:
        """Give the time of the next timer; None where there is none."""
        while self._entries and self._entries[0].cancelled:
            heapq.heappop(self._entries)
        return self._entries[0].due if self._entries else None

    async def settle(self) -> None:
        """Let what is ready run, without any time passing."""
        for _ in range(SETTLING):
            await asyncio.sleep(0)
