"""The Session port: what a keeper needs of one walsender session.

``fsm.postgres.session`` implements it over libpq, ``fsm.testing`` in memory. Every method either
returns or raises ``fsm.errors.SessionError``; none decides what happens next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock or a slot, as far as our grants show. Fields are None where they do not."""

    pid: int
    application_name: str | None = None
    user: str | None = None
    client_addr: str | None = None

    def __str__(self) -> str:
        """``pid 712, app 'etl', user 'bob'``."""
        parts = [f"pid {self.pid}"]
        if self.application_name:
            parts.append(f"app '{self.application_name}'")
        if self.user:
            parts.append(f"user '{self.user}'")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a new session learns about its server (IDENTIFY_SYSTEM and ParameterStatus)."""

    system_id: str
    timeline: int
    server_version: int
    """As libpq gives it: 150018 is 15.18."""
    backend_pid: int
    wal_position: int
    """LSN up to which the server has flushed its WAL."""
    history: tuple[tuple[int, int], ...] = ()
    """The timelines before the present one, each with the LSN at which it was left."""

    def left_at(self, timeline: int) -> int | None:
        """Give the LSN up to which this server shares ``timeline``; None where it never did."""
        if timeline == self.timeline:
            return self.wal_position
        return dict(self.history).get(timeline)


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """One row of pg_replication_slots. LSNs are ints, None where the column is NULL."""

    slot_type: str
    plugin: str | None
    database: str | None
    same_database: bool
    temporary: bool
    active_pid: int | None
    wal_status: str | None
    restart_lsn: int | None
    confirmed_flush_lsn: int | None
    invalidation_reason: str | None = None
    """17 and later; on 16 'conflicting' stands for the boolean column of that name."""
    synced: bool = False
    """17 and later: a slot that a standby copies from its primary."""


class Inbox(Protocol):
    """Where a session puts what it receives. Called from the event loop, never blocking."""

    def put(self, messages: Sequence[Any], size: int) -> None:
        """Take XLogData messages, in order.

        Args:
            messages: bytes-like CopyData payloads, header included: ``w``, start LSN, end LSN and
                server clock (25 bytes), then one pgoutput message.
            size: bytes of all of them together.
        """

    def keepalive(self, wal_end: int) -> None:
        """Note that the server has sent all it has up to ``wal_end`` (LSN)."""

    @property
    def full(self) -> bool:
        """The bound in bytes is reached: stop reading until ``room`` returns."""

    async def room(self) -> None:
        """Wait until there is room again."""

    @property
    def flushed(self) -> int:
        """The LSN up to which the host has everything safe: what a reply may confirm."""


class Session(Protocol):
    """One walsender session: the lock, the slot and the stream share its fate."""

    @property
    def lock_holder(self) -> Holder | None:
        """Who held the lock when this session last began to wait for it."""

    @property
    def last_received(self) -> float:
        """When the last message of the stream arrived, in seconds of the clock; 0.0 before one."""

    @property
    def reading_since(self) -> float:
        """Since when the stream is being read without a pause, in seconds of the clock."""

    @property
    def reading(self) -> bool:
        """The stream is being read: False while it is left unread because the host is behind."""

    async def open(self) -> ServerFacts:
        """Connect, apply the lease and identify the server."""

    async def lock(self, seconds: float) -> bool:
        """Ask for the advisory lock and wait for at most ``seconds``: True when it is ours."""

    async def check_publication(self) -> None:
        """Raise where a publication that is to be streamed does not exist."""

    async def inspect(self) -> SlotFacts | None:
        """Look at the slot; None where there is none."""

    async def create(self) -> SlotFacts:
        """Create the slot."""

    async def holder(self, pid: int) -> Holder:
        """Name the backend ``pid`` as far as our grants show it."""

    async def start(self, start_lsn: int) -> None:
        """START_REPLICATION from ``start_lsn`` (0: from where the slot stands)."""

    async def receive(self, inbox: Inbox) -> None:
        """Hand what arrives to ``inbox`` until the stream ends, which it always does by raising."""

    def acknowledge(self, lsn: int, *, request_reply: bool = False) -> None:
        """Send a standby status update that confirms ``lsn``. Does not block."""

    async def ping(self) -> None:
        """Ask the server for a sign of life while nothing streams."""

    async def end_stream(self, flushed: int) -> None:
        """Confirm ``flushed`` (LSN), send CopyDone and let the server answer, within a second."""

    def close(self) -> None:
        """Close at once: lock, slot and stream go with it. May be called at any time, twice too."""
