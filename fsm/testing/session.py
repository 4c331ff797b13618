"""A Postgres server in memory, as far as the Session port sees one.

It has one database, advisory locks, slots and a log of transactions; its sessions implement the
port. Tests script
it: refuse a call, leave one unanswered, sever a session, let a rival hold the slot.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from fsm.errors import Phase, SessionError
from fsm.runtime.clock import Clock
from fsm.runtime.session import Holder, Inbox, ServerFacts, SlotFacts
from fsm.testing import pgoutput

FIRST_LSN: Final = 0x1_0000_0000
TABLE_OID: Final = 16384
TEXT_OID: Final = 25

Row = dict[str, str | None]


@dataclass(frozen=True, slots=True)
class _Committed:
    xid: int
    commit_lsn: int
    end_lsn: int
    rows: tuple[Row, ...]


def refusal(
    phase: Phase, sqlstate: str | None, routine: str | None = None, **facts: object
) -> SessionError:
    """Give an error as a server would raise it."""
    return SessionError(
        f"scripted {sqlstate or 'failure'}",
        phase=phase,
        sqlstate=sqlstate,
        routine=routine,
        facts=facts,
    )


class MemoryServer:
    """The server.

    Args:
        clock: time.
        slot: the name of the slot.

    Attributes:
        slot_facts: the slot's row; None where it does not exist.
        publication_exists: whether the publication does.
        mute: no request for a reply is answered.
        calls: how often each method of the port was called.
        sessions: those that are open.
    """

    def __init__(self, clock: Clock, slot: str = "orders") -> None:
        self.clock = clock
        self.slot = slot
        self.slot_facts: SlotFacts | None = fresh_slot()
        self.publication_exists = True
        self.mute = False
        self.system_id = "7000000000000000001"
        self.timeline = 1
        self.history: tuple[tuple[int, int], ...] = ()
        self.calls: dict[str, int] = defaultdict(int)
        self.sessions: list[MemorySession] = []
        self._committed: list[_Committed] = []
        self._lsn = FIRST_LSN
        self._xid = 700
        self._pid = 1000
        self._scripts: dict[str, deque[SessionError | None]] = defaultdict(deque)
        self._lock_owner: MemorySession | None = None
        self._lock_queue: deque[tuple[MemorySession, asyncio.Future[bool]]] = deque()
        self._slot_owner: MemorySession | None = None

    def session(self) -> MemorySession:
        """Make a session, not yet open."""
        self._pid += 1
        return MemorySession(self, self._pid)

    # What tests do to it.

    def refuse(self, method: str, error: SessionError, times: int = 1) -> None:
        """Let the next ``times`` calls of a method raise ``error``."""
        self._scripts[method].extend([error] * times)

    def leave_unanswered(self, method: str) -> None:
        """Let the next call of a method never return."""
        self._scripts[method].append(None)

    def commit(self, *rows: Row) -> int:
        """Commit a transaction that inserts ``rows``; give its commit LSN."""
        self._xid += 1
        commit_lsn = self._lsn + 0x100
        self._lsn = commit_lsn + 0x30
        self._committed.append(_Committed(self._xid, commit_lsn, self._lsn, rows))
        for session in self.sessions:
            session.wake()
        return commit_lsn

    def sever(self, error: SessionError | None = None) -> None:
        """End all sessions: by ``error``, or as a connection that is reset."""
        for session in tuple(self.sessions):
            session.break_off(error or refusal("streaming", None, eof=True))

    def promote_standby(self, lost_from: int) -> None:
        """Let a standby take over that has nothing from ``lost_from`` (LSN) on."""
        self.sever()
        self._committed = [one for one in self._committed if one.end_lsn <= lost_from]
        self._lsn = lost_from
        confirmed = (self.slot_facts.confirmed_flush_lsn if self.slot_facts else None) or 0
        self._set_slot(confirmed_flush_lsn=min(confirmed, lost_from))
        self.history = (*self.history, (self.timeline, lost_from))
        self.timeline += 1

    def keepalive(self) -> None:
        """Send a keepalive on every stream."""
        for session in self.sessions:
            session.send_keepalive()

    @property
    def wal_position(self) -> int:
        """LSN up to which there is WAL."""
        return self._lsn

    @property
    def lock_owner(self) -> MemorySession | None:
        """Who has the advisory lock."""
        return self._lock_owner

    @property
    def slot_owner(self) -> MemorySession | None:
        """Who streams the slot."""
        return self._slot_owner

    def rival_takes_slot(self, pid: int = 712) -> None:
        """Let a backend that is none of ours hold the slot."""
        self._set_slot(active_pid=pid)

    def rival_leaves_slot(self) -> None:
        """Let it go."""
        self._set_slot(active_pid=None)

    # What sessions do with it.

    def _set_slot(self, **fields: object) -> None:
        if self.slot_facts is not None:
            self.slot_facts = replace(self.slot_facts, **fields)  # type: ignore[arg-type]  # its own fields

    async def answer(self, method: str) -> None:
        """Follow the script for this call."""
        self.calls[method] += 1
        script = self._scripts[method]
        if not script:
            return
        error = script.popleft()
        if error is None:
            await asyncio.Event().wait()
        else:
            raise SessionError(
                str(error),
                phase=error.phase,
                sqlstate=error.sqlstate,
                routine=error.routine,
                facts=error.facts,
            )

    async def grant_lock(self, session: MemorySession, seconds: float) -> bool:
        """Give the lock at once, or wait for it in turn."""
        if self._lock_owner in (None, session):
            self._lock_owner = session
            return True
        session.lock_holder = self._lock_owner.as_holder()
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._lock_queue.append((session, turn))
        timeout = self.clock.call_later(seconds, lambda: _resolve(turn))
        try:
            return await turn
        finally:
            timeout.cancel()
            self._lock_queue = deque(entry for entry in self._lock_queue if entry[1] is not turn)

    def occupy_slot(self, session: MemorySession) -> None:
        """Let a session stream the slot."""
        facts = self.slot_facts
        if facts is None:
            raise refusal("start", "42704", "ReplicationSlotAcquire")
        if facts.active_pid is not None:
            raise refusal("start", "55006", "ReplicationSlotAcquire")
        self._slot_owner = session
        self._set_slot(active_pid=session.pid)

    def confirm(self, lsn: int) -> None:
        """Move the slot's confirmed_flush forward."""
        facts = self.slot_facts
        if facts is not None and lsn > (facts.confirmed_flush_lsn or 0):
            self._set_slot(confirmed_flush_lsn=lsn)

    def release(self, session: MemorySession) -> None:
        """Take from a session that ends what it held; the next in turn gets the lock."""
        if session in self.sessions:
            self.sessions.remove(session)
        for waiting, turn in self._lock_queue:
            if waiting is session:
                _resolve(turn)
        if self._slot_owner is session:
            self._slot_owner = None
            self._set_slot(active_pid=None)
        if self._lock_owner is not session:
            return
        self._lock_owner = None
        while self._lock_queue and self._lock_owner is None:
            heir, turn = self._lock_queue.popleft()
            if not turn.done():
                self._lock_owner = heir
                turn.set_result(True)

    def after(self, lsn: int) -> Sequence[_Committed]:
        """Give the transactions that are not confirmed at ``lsn``."""
        return [one for one in self._committed if one.commit_lsn >= lsn]


def _resolve(turn: asyncio.Future[bool]) -> None:
    if not turn.done():
        turn.set_result(False)


def fresh_slot() -> SlotFacts:
    """Give the facts of a slot that was just created."""
    return SlotFacts(
        slot_type="logical",
        plugin="pgoutput",
        database="shop",
        same_database=True,
        temporary=False,
        active_pid=None,
        wal_status="reserved",
        restart_lsn=FIRST_LSN,
        confirmed_flush_lsn=FIRST_LSN,
    )


class MemorySession:
    """Implements ``fsm.runtime.session.Session``; its methods are described there."""

    def __init__(self, server: MemoryServer, pid: int) -> None:
        self.pid = pid
        self.lock_holder: Holder | None = None
        self.last_received = 0.0
        self.reading_since = 0.0
        self.reading = True
        self.acknowledged: list[int] = []
        self.ended_gracefully = False
        self._server = server
        self._next = 0
        self._inbox: Inbox | None = None
        self._broken: SessionError | None = None
        self._something = asyncio.Event()

    def as_holder(self) -> Holder:
        """Name this session as a holder."""
        return Holder(self.pid, "slotkeeper")

    async def open(self) -> ServerFacts:
        """Connect."""
        await self._answer("open")
        self._server.sessions.append(self)
        return ServerFacts(
            system_id=self._server.system_id,
            timeline=self._server.timeline,
            server_version=180000,
            backend_pid=self.pid,
            wal_position=self._server.wal_position,
            history=self._server.history,
        )

    async def lock(self, seconds: float) -> bool:
        """Take the lock, or wait for it."""
        await self._answer("lock")
        granted = await self._server.grant_lock(self, seconds)
        self._raise_if_broken()
        return granted

    async def check_publication(self) -> None:
        """Raise where the publication is missing."""
        await self._answer("check_publication")
        if not self._server.publication_exists:
            raise refusal(
                "publication_check", None, finding="publication_missing", publication="orders"
            )

    async def inspect(self) -> SlotFacts | None:
        """Look at the slot."""
        await self._answer("inspect")
        return self._server.slot_facts

    async def create(self) -> SlotFacts:
        """Create the slot."""
        await self._answer("create")
        self._server.slot_facts = replace(
            fresh_slot(), confirmed_flush_lsn=self._server.wal_position
        )
        return self._server.slot_facts

    async def holder(self, pid: int) -> Holder:
        """Name a backend."""
        await self._answer("holder")
        return Holder(pid, "etl")

    async def start(self, start_lsn: int) -> None:
        """Begin to stream."""
        await self._answer("start")
        self._server.occupy_slot(self)
        facts = self._server.slot_facts
        self._next = max(start_lsn, (facts.confirmed_flush_lsn or 0) if facts else 0)

    async def receive(self, inbox: Inbox) -> None:
        """Hand over transactions as they are committed."""
        await self._answer("receive")
        self._inbox = inbox
        self.reading_since = self._server.clock.monotonic()
        while True:
            for transaction in self._server.after(self._next):
                self._send(transaction)
            self._something.clear()
            await self._something.wait()
            self._raise_if_broken()

    def _send(self, transaction: _Committed) -> None:
        if self._inbox is None:
            return
        messages = encode(transaction)
        self._next = transaction.end_lsn
        self.last_received = self._server.clock.monotonic()
        self._inbox.put(messages, sum(map(len, messages)))

    def send_keepalive(self) -> None:
        """Tell the host the server's position."""
        if self._inbox is not None:
            self.last_received = self._server.clock.monotonic()
            self._inbox.keepalive(self._server.wal_position)

    def acknowledge(self, lsn: int, *, request_reply: bool = False) -> None:
        """Confirm."""
        self._server.calls["acknowledge"] += 1
        self.acknowledged.append(lsn)
        self._server.confirm(lsn)
        if request_reply and not self._server.mute:
            self.send_keepalive()

    async def ping(self) -> None:
        """Give a sign of life."""
        await self._answer("ping")

    async def end_stream(self, flushed: int) -> None:
        """End the stream in order."""
        self.acknowledge(flushed)
        self.ended_gracefully = True

    def close(self) -> None:
        """Close."""
        self._broken = self._broken or refusal("connect", None, closed=True)
        self._inbox = None
        self._server.release(self)

    def break_off(self, error: SessionError) -> None:
        """Let this session end by ``error``, and the server take back what it held."""
        self._broken = error
        self._server.release(self)
        self._something.set()

    def wake(self) -> None:
        """Look for new transactions."""
        self._something.set()

    async def _answer(self, method: str) -> None:
        self._raise_if_broken()
        await self._server.answer(method)
        self._raise_if_broken()

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise self._broken


def encode(transaction: _Committed) -> list[bytes]:
    """Write a transaction as the messages that pgoutput sends for it."""
    columns = tuple(transaction.rows[0]) if transaction.rows else ()
    described = [
        pgoutput.ColumnSpec(name, TEXT_OID, is_key=position == 0)
        for position, name in enumerate(columns)
    ]
    return [
        pgoutput.begin(transaction.commit_lsn, transaction.xid),
        pgoutput.relation(TABLE_OID, "orders", described),
        *(
            pgoutput.insert(TABLE_OID, list(row.values()), lsn=transaction.commit_lsn - 0x80)
            for row in transaction.rows
        ),
        pgoutput.commit(transaction.commit_lsn, transaction.end_lsn),
    ]
