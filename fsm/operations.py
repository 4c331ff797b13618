"""What each action of the machine does with a session."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Literal, TypeAlias

from fsm.delivery import Delivery
from fsm.errors import Phase, SessionError
from fsm.feed import Feed
from fsm.runtime.clock import Clock
from fsm.runtime.session import Holder, ServerFacts, Session, SlotFacts

SlotPolicy: TypeAlias = Literal["require", "create"]

LINGER: Final = 0.25
"""Seconds that our own lingering walsender is given to let go of the slot. A killed one that was
decoding a large transaction was seen to need up to 0.18 s."""
FIRST_PAUSE: Final = 0.005
_SLOT_IN_USE: Final = "55006"

_PHASE_OF_TIMEOUT: Final[dict[str, Phase]] = {
    "connect_timed_out": "connect",
    "answer_overdue": "lock",
    "acquire_timed_out": "start",
}


class Operations:
    """Performs the actions of states.yaml for one slot.

    Args:
        new_session: makes a session, not yet open.
        delivery: where changes go, and where the host's acknowledgements are.
        clock: time.
        slot: the slot's name.
        slot_policy: ``create`` makes a missing slot, ``require`` fails.
        lease: seconds after which a silent peer is given up.
        slice_length: gives the length of the present lock slice, in seconds.
    """

    def __init__(
        self,
        new_session: Callable[[], Session],
        delivery: Delivery,
        clock: Clock,
        *,
        slot: str,
        slot_policy: SlotPolicy,
        lease: float,
        slice_length: Callable[[], float],
    ) -> None:
        self.session: Session | None = None
        self.server: ServerFacts | None = None
        self.slot: SlotFacts | None = None
        self.holder: Holder | None = None
        """Who holds the slot although the lock is ours."""
        self._new_session = new_session
        self._delivery = delivery
        self._clock = clock
        self._name = slot
        self._slot_policy = slot_policy
        self._lease = lease
        self._slice_length = slice_length
        self._own_pids: deque[int] = deque(maxlen=8)
        self._feed: Feed | None = None
        self._streaming_since = 0.0
        self._pinging = False
        self._branched = False
        self._moved: tuple[int, int] | None = None
        self._operations: dict[str, Callable[[Session], Coroutine[Any, Any, str | None]]] = {
            "take_lock": self._take_lock,
            "inspect_slot": self._inspect_slot,
            "start_stream": self._start_stream,
            "receive": self._receive,
            "ping": self._ping,
            "check_work": self._check_work,
            "check_silence": self._check_silence,
        }

    # The Performer.

    async def operation(self, action: str) -> str | None:
        """Run an operation; see ``fsm.runtime.actor.Performer``."""
        if action == "open_session":
            return await self._open_session()
        if self.session is None:
            raise SessionError(
                f"there is no session to {action.replace('_', ' ')} on",
                phase="connect",
                facts={"finding": "no_session"},
            )
        return await self._operations[action](self.session)

    async def perform(self, action: str) -> None:
        """Do what is done at once; see ``fsm.runtime.actor.Performer``."""
        match action:
            case "send_status":
                self._report_status()
            case "end_stream":
                await self._end_stream()
            case "close_session":
                self.close_session()
            case "tell_waiting":
                pass  # the record of this row says what is waited for, and who holds it

    def phase_error(self, trigger: str) -> SessionError:
        """Give the error that a timer, or the governor, stands for."""
        return SessionError(
            trigger.replace("_", " "),
            phase=_PHASE_OF_TIMEOUT.get(trigger, "connect"),
            facts={"finding": trigger, "slot": self._name},
        )

    def facts(self) -> dict[str, Any]:
        """Give what is known now, for the journal."""
        session = self.session
        facts: dict[str, Any] = {"slot": self._name, "flushed": self._delivery.progress.flushed}
        if session is None:
            return facts
        if self.server is not None:
            facts["backend_pid"] = self.server.backend_pid
        if session.lock_holder is not None:
            facts["lock_holder"] = str(session.lock_holder)
        if self.holder is not None:
            facts["holder"] = str(self.holder)
        if self._moved is not None:
            facts["moved_by_another"] = {"from": self._moved[0], "to": self._moved[1]}
        return facts

    # Operations.

    async def _open_session(self) -> str:
        self.close_session()
        self.session = self._new_session()
        server = await self.session.open()
        self._refuse_another_history(server)
        self.server = server
        return "session_opened"

    def _refuse_another_history(self, server: ServerFacts) -> None:
        """A server that is not the one we followed would silently skip what it thinks we have.

        After a promotion the histories part where the old timeline was left. What was flushed
        before that is common; what the host has unacknowledged may not be.
        """
        known = self.server
        if known is None:
            return
        common = server.left_at(known.timeline) if server.system_id == known.system_id else None
        if common is not None and self._delivery.progress.flushed <= common:
            self._branched = self._branched or server.timeline != known.timeline
            return
        raise SessionError(
            f"the server (system identifier {server.system_id}, timeline {server.timeline}) does "
            f"not continue the history that was followed (system identifier {known.system_id}, "
            f"timeline {known.timeline})",
            phase="startup",
            facts={"finding": "divergence", "slot": self._name},
        )

    async def _take_lock(self, session: Session) -> str:
        granted = await session.lock(self._slice_length())
        return "lock_granted" if granted else "slice_ended"

    async def _inspect_slot(self, session: Session) -> str:
        await session.check_publication()
        slot = await session.inspect()
        if slot is None:
            slot = await self._create_if_allowed(session)
        self.slot = slot
        finding = finding_about(slot)
        if finding is not None:
            raise self._finding(finding, slot)
        return "slot_found"

    async def _create_if_allowed(self, session: Session) -> SlotFacts:
        facts: dict[str, Any] = {"finding": "slot_missing", "slot": self._name}
        if self._delivery.progress.flushed:
            # A new slot would begin now, and what came since would be missing without a word.
            facts["previously_streamed"] = True
        elif self._slot_policy == "create":
            return await session.create()
        raise SessionError(f"slot '{self._name}' does not exist", phase="start", facts=facts)

    def _finding(self, finding: str, slot: SlotFacts) -> SessionError:
        return SessionError(
            f"slot '{self._name}': {finding.replace('_', ' ')}",
            phase="start",
            facts={
                "finding": finding,
                "slot": self._name,
                "database": slot.database,
                "plugin": slot.plugin,
                "wal_status": slot.wal_status,
                "invalidation_reason": slot.invalidation_reason,
            },
        )

    async def _start_stream(self, session: Session) -> str:
        await self._start_past_our_own_walsender(session)
        # Only now: a rival may have moved the slot while START was refused because of it.
        progress = self._delivery.progress
        before = progress.flushed
        moved_by_another = progress.adopt(self._confirmed())
        self._moved = (before, progress.flushed) if moved_by_another else None
        if self._branched:
            progress.forget_outstanding()
        moved_by_another, self._branched = moved_by_another or self._branched, False
        self.holder = None
        self._streaming_since = self._clock.monotonic()
        self._feed = self._delivery.begin_session(moved_by_another=moved_by_another)
        return "stream_started"

    def _confirmed(self) -> int:
        return (self.slot.confirmed_flush_lsn if self.slot else None) or 0

    async def _start_past_our_own_walsender(self, session: Session) -> None:
        """START_REPLICATION; wait a moment where what is left of ourselves holds the slot."""
        deadline = self._clock.monotonic() + LINGER
        pause = FIRST_PAUSE
        while True:
            try:
                await session.start(max(self._delivery.progress.flushed, self._confirmed()))
            except SessionError as error:
                if error.sqlstate != _SLOT_IN_USE:
                    error.facts["previously_streamed"] = self._feed is not None
                    raise
                lingering = await self._find_holder(session, error)
                if not lingering or self._clock.monotonic() + pause > deadline:
                    raise
            else:
                return
            await self._clock.sleep(pause)
            self.slot = await session.inspect()  # who held it may have moved it before it left
            pause *= 2

    async def _find_holder(self, session: Session, error: SessionError) -> bool:
        """Name the holder in the error; True where it is on its way out."""
        slot = await session.inspect()
        pid = slot.active_pid if slot else None
        if pid is None:
            return True
        self.holder = await session.holder(pid)
        error.facts |= {"slot": self._name, "active_pid": pid, "holder": str(self.holder)}
        before_us = session.lock_holder.pid if session.lock_holder else None
        return pid == before_us or pid in self._own_pids

    async def _receive(self, session: Session) -> None:
        if self._feed is not None:
            await session.receive(self._feed)

    async def _ping(self, session: Session) -> str | None:
        if self._pinging:
            return "session_lost"
        self._pinging = True
        try:
            await session.ping()
        except SessionError:
            return "session_lost"
        finally:
            self._pinging = False
        return None

    async def _check_work(self, session: Session) -> str | None:
        if session.last_received > self._streaming_since:
            return "work_shown"
        session.acknowledge(self._delivery.progress.flushed, request_reply=True)
        return None

    async def _check_silence(self, session: Session) -> None:
        heard = max(session.last_received, session.reading_since, self._streaming_since)
        silent_for = self._clock.monotonic() - heard
        if not session.reading or silent_for < self._lease / 2:
            return
        if silent_for >= self._lease:
            raise SessionError(
                f"nothing was heard from the server for {silent_for:.1f} s",
                phase="streaming",
                facts={"finding": "silence", "slot": self._name, "seconds": silent_for},
            )
        session.acknowledge(self._delivery.progress.flushed, request_reply=True)

    # Done at once.

    def send_status(self) -> None:
        """Tell the server what is flushed, where a stream is open."""
        if self.session is not None and self._feed is not None and not self._feed.ended:
            self.session.acknowledge(self._delivery.progress.flushed)

    def _report_status(self) -> None:
        try:
            self.send_status()
        except SessionError:
            # While the stream is read, its reader meets the same end, and knows why.
            if self.session is None or not self.session.reading:
                raise

    async def _end_stream(self) -> None:
        if self.session is not None:
            await self.session.end_stream(self._delivery.progress.flushed)

    def close_session(self) -> None:
        """Close what is open; lock, slot and stream go with it."""
        self._delivery.end_session()
        self.holder = None
        self._moved = None
        self._pinging = False
        session, self.session = self.session, None
        if session is None:
            return
        if self.server is not None:
            self._own_pids.append(self.server.backend_pid)
        session.close()


def finding_about(slot: SlotFacts) -> str | None:
    """Say why a slot cannot be streamed by us; None where it can."""
    if slot.slot_type != "logical":
        return "slot_is_physical"
    if not slot.same_database:
        return "slot_of_other_database"
    if slot.plugin != "pgoutput":
        return "slot_of_other_plugin"
    if slot.temporary:
        return "slot_is_temporary"
    if slot.wal_status == "lost" or slot.invalidation_reason is not None:
        return "slot_lost"
    return "slot_synced_on_standby" if slot.synced else None
