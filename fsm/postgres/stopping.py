"""Recognises a server that is shutting down and waits for us to confirm everything.

Such a walsender answers each of our replies with another keepalive that asks for one, at an
unmoving position, for ever (WalSndDone in walsender.c). Closing the session lets it stop.
"""

from __future__ import annotations

from typing import Final

RUN: Final = 1.0
"""Seconds of such keepalives after which the server is taken to be stopping."""
GAP: Final = 0.3
"""Seconds between two of them that end a run. A keepalive that only fears for wal_sender_timeout
comes once in half of that time."""
AT_LEAST: Final = 4
REPLY_INTERVAL: Final = 0.1
"""Seconds between two replies at one position, so that the two sides do not spin."""


class StopWatch:
    """Watches the keepalives that ask for a reply."""

    def __init__(self) -> None:
        self._position = -1
        self._began = 0.0
        self._last = 0.0
        self._count = 0
        self._replied = float("-inf")

    def note(self, position: int, now: float) -> bool:
        """Note one at ``position`` (LSN), ``now`` (seconds); True where the server is stopping."""
        if position != self._position or now - self._last > GAP:
            self._position, self._began, self._count = position, now, 0
        self._last = now
        self._count += 1
        return self._count >= AT_LEAST and now - self._began >= RUN

    def reply_in(self, now: float) -> float:
        """Give the seconds by which a reply should be put off."""
        if self._count <= 1:
            self._replied = now
            return 0.0
        wait = max(0.0, self._replied + REPLY_INTERVAL - now)
        self._replied = now + wait
        return wait
