"""One stream: receive, reply, acknowledge (docs: protocol-replication.html)."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any, Final

from fsm.errors import SessionError
from fsm.postgres.stopping import StopWatch

if TYPE_CHECKING:
    from fsm.postgres.wire import Notice, Wire
    from fsm.runtime.clock import Clock, TimerHandle
    from fsm.runtime.session import Inbox

DRAIN: Final = 500
"""Messages taken in one callback at most, so that the event loop is never held for long."""

_XLOG_DATA: Final = ord("w")
_KEEPALIVE: Final = ord("k")
_POSITION: Final = struct.Struct(">xQ")
_KEEPALIVE_FIELDS: Final = struct.Struct(">xQqB")
_STATUS: Final = struct.Struct(">cQQQqB")
_POSTGRES_EPOCH: Final = 946_684_800
"""Seconds from 1970 to 2000."""


class Stream:
    """Reads one COPY BOTH until it ends.

    Args:
        wire: the connection, on which COPY BOTH has just begun.
        inbox: where messages go.
        clock: time.
    """

    def __init__(self, wire: Wire, inbox: Inbox, clock: Clock) -> None:
        self.last_received = 0.0
        self.reading_since = clock.monotonic()
        self.reading = True
        self._wire = wire
        self._inbox = inbox
        self._clock = clock
        self._received = 0
        self._stopping = StopWatch()
        self._late_reply: TimerHandle | None = None
        self._again: asyncio.Handle | None = None
        self._pause = asyncio.Event()
        self._end: Exception | None = None
        wire.on_notice = self._notice

    async def run(self) -> None:
        """Hand over what arrives; leave the socket unread while the inbox is full.

        Raises:
            SessionError: the reason why the stream ended.
        """
        try:
            while True:
                self._wire.watch(self._drain)
                await self._pause.wait()
                if self._end is not None:
                    raise self._end
                self._pause.clear()
                self.reading = False
                await self._inbox.room()
                self.reading = True
                self.reading_since = self._clock.monotonic()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._wire.unwatch()
        for handle in (self._late_reply, self._again):
            if handle is not None:
                handle.cancel()

    def _drain(self) -> None:
        """Take what is there. This is the reader's callback."""
        try:
            drained = self._wire.drain(DRAIN)
            if drained.messages:
                self.last_received = self._clock.monotonic()
                if self._end is None:
                    self._sort(drained.messages, drained.size)
        except Exception as error:  # noqa: BLE001  (raised in a callback it would be lost, and the stream go on)
            self._finish(error)
            return
        if self._end is not None:
            self._finish(self._end)
        elif self._inbox.full:
            self._wire.unwatch()
            self._pause.set()
        elif drained.more and self._again is None:
            self._again = asyncio.get_running_loop().call_soon(self._drain_again)

    def _drain_again(self) -> None:
        self._again = None
        if not self._pause.is_set():
            self._drain()

    def _finish(self, error: Exception) -> None:
        self._end = error
        self._wire.unwatch()
        self._pause.set()

    def _sort(self, messages: list[Any], size: int) -> None:
        """Hand over changes; take keepalives in their turn."""
        batch: list[Any] = []
        for message in messages:
            if len(message) < _KEEPALIVE_FIELDS.size:
                raise _against_protocol(f"of {len(message)} bytes, which is none")
            if message[0] == _XLOG_DATA:
                batch.append(message)
            elif message[0] == _KEEPALIVE:
                if batch:
                    self._put(batch, size)
                    batch, size = [], 0
                self._take_keepalive(message)
            else:
                raise _against_protocol(f"of unknown kind {message[0]:#04x}")
        self._put(batch, size)

    def _put(self, batch: list[Any], size: int) -> None:
        if not batch:
            return
        (position,) = _POSITION.unpack_from(batch[-1])
        self._received = max(self._received, position)
        self._inbox.put(batch, size)

    def _take_keepalive(self, message: Any) -> None:
        wal_end, _, reply_requested = _KEEPALIVE_FIELDS.unpack_from(message)
        self._received = max(self._received, wal_end)
        self._inbox.keepalive(wal_end)
        if not reply_requested:
            return
        now = self._clock.monotonic()
        if self._stopping.note(wal_end, now):
            self._end = SessionError(
                "the server is shutting down and waits for what is not yet acknowledged",
                phase="streaming",
                facts={"finding": "server_stopping"},
            )
            return
        if self._late_reply is None:
            self._reply_in(self._stopping.reply_in(now))

    def _reply_in(self, seconds: float) -> None:
        if seconds <= 0:
            self.acknowledge(self._inbox.flushed)
        else:
            self._late_reply = self._clock.call_later(seconds, self._reply_late)

    def _reply_late(self) -> None:
        self._late_reply = None
        try:
            self.acknowledge(self._inbox.flushed)
        except SessionError as error:
            self._finish(error)

    def acknowledge(self, lsn: int, *, request_reply: bool = False) -> None:
        """Send a standby status update: all up to ``lsn`` is flushed and applied."""
        clock = int((self._clock.wall() - _POSTGRES_EPOCH) * 1_000_000)
        written = max(self._received, lsn)
        self._wire.send_copy(_STATUS.pack(b"r", written, lsn, lsn, clock, request_reply))

    def _notice(self, notice: Notice) -> None:
        """PostgreSQL 18 only warns when it skips a publication; what it skipped would be lost."""
        if (notice.sqlstate, notice.routine) == ("55000", "LoadPublications"):
            self._end = SessionError(
                "the server skips a publication that does not exist",
                phase="streaming",
                sqlstate=notice.sqlstate,
                routine=notice.routine,
                facts={"finding": "publication_skipped", "message": notice.message},
            )


def _against_protocol(what: str) -> SessionError:
    return SessionError(
        f"the stream holds a message {what}", phase="streaming", facts={"protocol": True}
    )
