"""One walsender session over libpq: the lock, the slot and the stream share its fate."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from fsm.errors import BadInput, SessionError, SlotkeeperError
from fsm.postgres import conninfo, lock
from fsm.postgres import slot as _slot
from fsm.postgres.lsn import parse_lsn
from fsm.postgres.slot import quote_literal, rows
from fsm.postgres.stream import Stream
from fsm.postgres.wire import Wire, connect_first
from fsm.runtime.session import Holder, Inbox, ServerFacts, SlotFacts

if TYPE_CHECKING:
    from fsm.postgres.conninfo import Dsn
    from fsm.runtime.clock import Clock

END_OF_STREAM: Final = 1.0
"""Seconds that the server is given to answer CopyDone."""
_LOCK_NOT_AVAILABLE: Final = "55P03"
_OF_PUBLICATIONS: Final = ("42704", "55000")
"""SQLSTATEs of a stream that lacks a publication: the error of 14-17, the warning of 18."""
_MAX_KEY: Final = 2**63


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What all sessions of a keeper have in common."""

    dsn: Dsn = field(repr=False)
    slot: str
    publications: tuple[str, ...]
    lease: float
    logical_messages: bool
    lock_key: int
    connect_timeout: float
    parameters: dict[str, str]

    @classmethod
    def of(  # noqa: PLR0913 - all but the DSN are named
        cls,
        dsn: Dsn,
        *,
        slot: str,
        publication: str | Sequence[str],
        lease: float,
        logical_messages: bool,
        lock_key: int | None,
        lock_namespace: str,
        application_name: str | None,
        connect_timeout: float = 15.0,
    ) -> Self:
        """Check what the host gave.

        Raises:
            BadInput: what cannot be used, and why.
        """
        conninfo.check(dsn)
        _slot.check_slot_name(slot)
        publications = (publication,) if isinstance(publication, str) else tuple(publication)
        if not publications or not all(publications):
            raise BadInput("name at least one publication, none of them empty")
        key = lock.lock_key(slot, lock_namespace) if lock_key is None else lock_key
        if not -_MAX_KEY <= key < _MAX_KEY:
            raise BadInput(f"lock_key is {key}; it must fit into 64 bits, signed")
        parameters = conninfo.session_parameters(lease=lease, application_name=application_name)
        return cls(
            dsn, slot, publications, lease, logical_messages, key, connect_timeout, parameters
        )


class PostgresSession:
    """Implements ``fsm.runtime.session.Session``; its methods are described there.

    Args:
        settings: what all sessions of the keeper have in common.
        clock: time.
    """

    def __init__(self, settings: SessionSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._wire: Wire | None = None
        self._stream: Stream | None = None
        self._lock_holder: Holder | None = None
        self._closed = False
        self._ping: asyncio.Task[Any] | None = None

    @property
    def lock_holder(self) -> Holder | None:
        """Who held the lock when this session began to wait."""
        return self._lock_holder

    @property
    def last_received(self) -> float:
        """When the last byte of the stream arrived; 0 before."""
        return self._stream.last_received if self._stream else 0.0

    @property
    def reading_since(self) -> float:
        """Since when the stream is being read without a pause; 0 before."""
        return self._stream.reading_since if self._stream else 0.0

    @property
    def reading(self) -> bool:
        """The stream is being read."""
        return self._stream is not None and self._stream.reading

    async def open(self) -> ServerFacts:
        """Connect, apply the lease and identify the server."""
        attempts = await conninfo.attempts(self._settings.dsn, self._settings.parameters)
        # A host that does not answer must leave time for the others; the machine's own timer
        # bounds them all.
        share = self._settings.connect_timeout / len(attempts) if len(attempts) > 1 else None
        wire = await connect_first(attempts, seconds=share)
        if self._closed:
            wire.finish()
            raise _closed("startup")
        self._wire = wire
        await self._apply_late_settings(wire)
        identity = rows(await wire.query("IDENTIFY_SYSTEM", phase="startup"))[0]
        await self._refuse_pooler(wire)
        return ServerFacts(
            system_id=identity[0] or "",
            timeline=int(identity[1] or 0),
            server_version=wire.server_version,
            backend_pid=wire.backend_pid,
            wal_position=parse_lsn(identity[2] or "0/0"),
            history=await _history(wire, int(identity[1] or 0)),
        )

    async def _apply_late_settings(self, wire: Wire) -> None:
        for setting in conninfo.after_connect_settings(
            wire.server_version, lease=self._settings.lease
        ):
            try:
                await wire.query(setting.sql, phase="startup")
            except SessionError:
                if not setting.may_be_refused or wire.closed:
                    raise

    async def _refuse_pooler(self, wire: Wire) -> None:
        """Behind a pooler, lock and stream may be on different backends."""
        pid = rows(await wire.query("SELECT pg_backend_pid()", phase="startup"))[0][0]
        if pid != str(wire.backend_pid):
            raise SessionError(
                "a connection pooler stands between us and the server",
                phase="startup",
                facts={"finding": "pooler", "slot": self._settings.slot},
            )

    async def lock(self, seconds: float) -> bool:
        """Take the advisory lock, or wait for it."""
        wire = await self._free_wire("lock")
        key = self._settings.lock_key
        if await self._asked_true(f"SELECT pg_try_advisory_lock({key})"):
            await wire.query("SET lock_timeout = 0", phase="lock")  # an earlier slice set it
            return True
        self._lock_holder = await self._find_lock_holder()
        await wire.query(f"SET lock_timeout = {max(1, round(seconds * 1000))}", phase="lock")
        try:
            await wire.query(f"SELECT pg_advisory_lock({key})", phase="lock")
        except SessionError as error:
            if error.sqlstate != _LOCK_NOT_AVAILABLE:
                raise
            # It may be ours all the same: a grant can cross the timeout. Asking again finds that
            # out, and closing the session frees it however often it was granted.
            return False
        await wire.query("SET lock_timeout = 0", phase="lock")
        return True

    async def _asked_true(self, sql: str) -> bool:
        wire = await self._free_wire("lock")
        return rows(await wire.query(sql, phase="lock"))[0][0] == "t"

    async def _find_lock_holder(self) -> Holder | None:
        wire = await self._free_wire("lock")
        high, low = lock.halves(self._settings.lock_key)
        sql = (
            "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
            f"WHERE d.datname = current_database() AND l.locktype = {quote_literal('advisory')} "
            f"AND l.classid = {high} AND l.objid = {low} AND l.objsubid = 1 AND l.granted"
        )
        found = rows(await wire.query(sql, phase="lock"))
        return await _slot.backend(wire, int(found[0][0] or 0)) if found else None

    async def check_publication(self) -> None:
        """Raise where a publication is missing."""
        wire = await self._free_wire("publication_check")
        await _slot.check_publications(wire, self._settings.publications)

    async def inspect(self) -> SlotFacts | None:
        """Look at the slot."""
        wire = await self._free_wire("start")
        found = await _slot.inspect(wire, self._settings.slot)
        if found is None:
            await _slot.check_wal_level(wire, self._settings.slot)
        return found

    async def create(self) -> SlotFacts:
        """Create the slot and look at it."""
        wire = await self._free_wire("create_slot")
        await _slot.create(wire, self._settings.slot)
        found = await self.inspect()
        if found is None:
            raise SessionError(
                "the slot was created, and is gone again",
                phase="create_slot",
                facts={"finding": "slot_missing", "slot": self._settings.slot},
            )
        return found

    async def holder(self, pid: int) -> Holder:
        """Name a backend."""
        return await _slot.backend(await self._free_wire("start"), pid)

    async def start(self, start_lsn: int) -> None:
        """START_REPLICATION."""
        wire = await self._free_wire("start")
        command = _slot.start_command(
            self._settings.slot,
            start_lsn,
            self._settings.publications,
            messages=self._settings.logical_messages,
        )
        try:
            await wire.start_copy_both(command)
        except SessionError as error:
            error.facts.setdefault("slot", self._settings.slot)
            raise

    async def receive(self, inbox: Inbox) -> None:
        """Hand over what arrives until the stream ends."""
        wire = await self._free_wire("streaming")
        self._stream = Stream(wire, inbox, self._clock)
        try:
            await self._stream.run()
        except SessionError as error:
            self._name_publication(error)
            raise

    def _name_publication(self, error: SessionError) -> None:
        """Say which publication an error is about, where that is plain.

        What the error means is decided without the message, which is translated.
        """
        for one in (error, error.__cause__):
            if not isinstance(one, SessionError) or one.sqlstate not in _OF_PUBLICATIONS:
                continue
            names = self._settings.publications
            message = one.facts.get("message") or ""
            meant = names if len(names) == 1 else [name for name in names if name in message]
            if len(meant) == 1:
                one.facts.setdefault("publication", meant[0])

    def acknowledge(self, lsn: int, *, request_reply: bool = False) -> None:
        """Send a standby status update."""
        if self._stream is not None and not self._closed:
            self._stream.acknowledge(lsn, request_reply=request_reply)

    async def ping(self) -> None:
        """Ask for a sign of life.

        A cancelled wait leaves the question on its way: the session goes on, and what is asked
        next waits for the answer.
        """
        wire = await self._free_wire("lock")
        self._ping = asyncio.create_task(
            wire.query("SELECT 1", phase="lock"), name="slotkeeper ping"
        )
        self._ping.add_done_callback(_consume_outcome)
        await asyncio.shield(self._ping)

    async def end_stream(self, flushed: int) -> None:
        """Confirm, send CopyDone, let the server answer."""
        if self._stream is None or self._wire is None or self._wire.closed:
            return
        self._stream.acknowledge(flushed)
        try:
            async with asyncio.timeout(END_OF_STREAM):
                await self._wire.end_copy()
        except TimeoutError:
            raise SlotkeeperError(
                f"the server did not answer the end of the stream within {END_OF_STREAM:g} s"
            ) from None

    def close(self) -> None:
        """Close at once."""
        self._closed = True
        if self._wire is not None:
            self._wire.finish()

    async def _free_wire(self, phase: Any) -> Wire:
        if self._ping is not None and not self._ping.done():
            await asyncio.wait({self._ping})
        if self._wire is None or self._closed:
            raise _closed(phase)
        return self._wire


async def _history(wire: Wire, timeline: int) -> tuple[tuple[int, int], ...]:
    """Read the timelines before this one (docs: protocol-replication.html, TIMELINE_HISTORY)."""
    if timeline <= 1:
        return ()
    content = rows(await wire.query(f"TIMELINE_HISTORY {timeline}", phase="startup"))[0][1] or ""
    lines = [line.split() for line in content.splitlines()]
    return tuple(
        (int(line[0]), parse_lsn(line[1])) for line in lines if line and line[0].isdecimal()
    )


def _consume_outcome(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _closed(phase: Any) -> SessionError:
    return SessionError("the session is not open", phase=phase, facts={"closed": True})
