"""One slot, kept: what a host program embeds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from random import Random, SystemRandom
from types import TracebackType
from typing import Any, Final, Self, cast

from fsm.delivery import Delivery
from fsm.errors import BadInput, SessionError, SlotFailed
from fsm.health import Health
from fsm.machine.engine import Engine, Table
from fsm.machine.governor import Governor
from fsm.machine.loader import shipped
from fsm.machine.spec import STATES, Spec, State
from fsm.operations import Operations, SlotPolicy
from fsm.postgres.conninfo import Dsn
from fsm.postgres.errors import Classifier
from fsm.postgres.session import PostgresSession, SessionSettings
from fsm.runtime.actor import Actor
from fsm.runtime.clock import Clock, RealClock, TimerHandle
from fsm.runtime.journal import Journal, Record
from fsm.runtime.session import Session
from fsm.transaction import Transaction

REPLY_DELAY: Final = 0.02
"""Seconds by which acknowledgements are gathered into one reply."""
LONGEST_LEASE: Final = 65_534
"""Seconds. Half of it is tcp_keepalives_idle, which Linux takes up to 32767 (tcp.c)."""
LONGEST_SLICE: Final = 2_147_483
"""Seconds. lock_timeout is a number of milliseconds in 32 bits."""


@cache
def _shipped_table() -> Table:
    return Table.of(shipped())


class Keeper:
    """Keeps one replication slot and hands its transactions to the host.

    Use it as an asynchronous context manager, and iterate over it::

        async with fsm.Keeper(dsn, slot="orders", publication="orders") as keeper:
            async for transaction in keeper:
                async for change in transaction:
                    await handle(change)
                await keeper.ack(transaction)

    Args:
        dsn: a connection string or URL, a mapping of libpq's keywords, or a callable (plain or
            async) that gives one of these and is asked at every connection. libpq's environment
            variables count.
        slot: the slot's name: lower-case letters, digits and underscores, at most 63.
        publication: one publication's name, or several.
        slot_policy: ``require`` fails where the slot is missing, ``create`` creates it.
        lease: seconds within which a frozen or unreachable session loses lock and slot.
        lock_slice: seconds of one wait for the lock, which holds a snapshot in the database
            meanwhile. None, here and below, means what the machine's file says (30).
        connect_timeout: seconds in which a session must be open (15).
        revive_after: seconds after which Failed is left again (the file: never).
        logical_messages: also hand over what pg_logical_emit_message() writes.
        lock_key: the advisory lock's key, instead of the one computed from ``lock_namespace`` and
            slot.
        lock_namespace: part of the key; keepers of one slot must agree on it.
        application_name: how the session shows up in pg_stat_activity.
        buffer_bytes: what may wait for the host before the socket is left unread.
        attempt_rate: attempts a second that the governor allows in the long run.
        attempt_burst: attempts that it allows at once.
        spec: another machine than the shipped one.
        timers: seconds by name of timer, instead of what the machine's file says; None switches
            one off.
        classifier: says what errors mean; another one may carry the host's own rules.
        clock: time; tests bring their own.
        random: where jitter comes from.
        new_session: makes sessions; tests bring their own.
        journal: where all is written down; of this keeper alone.

    Raises:
        BadInput: an argument cannot be used.
    """

    def __init__(  # noqa: PLR0913  (each is one choice of the host, all but three have a default)
        self,
        dsn: Dsn,
        *,
        slot: str,
        publication: str | Sequence[str],
        slot_policy: SlotPolicy = "require",
        lease: float = 10.0,
        lock_slice: float | None = None,
        connect_timeout: float | None = None,
        revive_after: float | None = None,
        logical_messages: bool = False,
        lock_key: int | None = None,
        lock_namespace: str = "slotkeeper",
        application_name: str | None = None,
        buffer_bytes: int = 8 * 1024 * 1024,
        attempt_rate: float = 1.0,
        attempt_burst: int = 10,
        spec: Spec | None = None,
        timers: Mapping[str, float | None] | None = None,
        classifier: Classifier | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        new_session: Callable[[], Session] | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.slot = slot
        self.journal = Journal() if journal is None else journal
        self._clock: Clock = clock or RealClock()
        machine = spec or shipped()
        named = {
            "lock_slice": lock_slice,
            "connect_timeout": connect_timeout,
            "revive_after": revive_after,
        }
        chosen = {name: length for name, length in named.items() if length is not None}
        lengths = _timer_lengths(machine, lease, {**chosen, **(timers or {})})
        self._revives = lengths.get("revive_after") is not None
        longest_slice = lengths.get("lock_slice") or LONGEST_SLICE
        _refuse_unusable(slot_policy, lease, buffer_bytes)
        _refuse_unusable_rate(attempt_rate, attempt_burst, longest_slice)
        settings = SessionSettings.of(
            dsn,
            slot=slot,
            publication=publication,
            lease=lease,
            logical_messages=logical_messages,
            lock_key=lock_key,
            lock_namespace=lock_namespace,
            application_name=application_name,
            connect_timeout=lengths.get("connect_timeout") or LONGEST_SLICE,
        )
        classifier = classifier or Classifier.shipped()
        self._delivery = Delivery(buffer_bytes, self._report)
        self._operations = Operations(
            new_session or (lambda: PostgresSession(settings, self._clock)),
            self._delivery,
            self._clock,
            slot=slot,
            slot_policy=slot_policy,
            lease=lease,
            slice_length=lambda: self._actor.timers.length("lock_slice") or longest_slice,
        )
        self._engine = Engine(
            machine,
            random=random or SystemRandom(),
            lease=lease,
            governor=Governor(attempt_rate, attempt_burst),
            lengths=lengths,
            table=None if spec else _shipped_table(),
        )
        self._actor = Actor(
            self._engine, self._operations, classifier.classify, self._clock, self.journal
        )
        self._written: State = self._engine.state
        """The state that the journal tells of; the machine may be on its way to another one."""
        self._task: asyncio.Task[None] | None = None
        self._broke = False
        self._reply: TimerHandle | None = None
        self._stop_listening: Callable[[], None] | None = None

    # Its life.

    async def __aenter__(self) -> Self:
        """Begin, and return at once: the machine is in Locking."""
        if self._task is not None:
            raise BadInput("this keeper was used already; make a new one for each 'async with'")
        self._stop_listening = self.journal.listen(self._follow)
        self._task = asyncio.create_task(self._run(), name=f"slotkeeper {self.slot}")
        self._actor.tell("start")
        try:
            await self._reach("Locking", "BackingOff", "Failed")
        except BaseException:  # without this, nobody would: __aexit__ is not called then
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; where the host's code raised or was cancelled, at once."""
        try:
            if kind is None:
                await self.stop()
        finally:
            await self._end()

    async def _run(self) -> None:
        try:
            await self._actor.run()
        except ExceptionGroup as group:
            self._broke = True
            self._delivery.fail(_of_bug(_first_of(group)))
            raise

    async def _end(self) -> None:
        """Let go of all, whatever happens meanwhile."""
        self._delivery.close()
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait({self._task})
        finally:
            if self._reply is not None:
                self._reply.cancel()
            if not self._broke:
                self._actor.end()
            with suppress(SessionError):
                self._operations.send_status()
            self._operations.close_session()
            self._engine.forget()
            if self._stop_listening is not None:
                self._stop_listening()
        if self._task is not None and not self._task.cancelled():
            self._task.result()

    async def stop(self) -> None:
        """Confirm what was acknowledged and close; ends in Idle, and iteration ends."""
        self._delivery.close()
        self._actor.tell("stop")
        await self._reach("Idle")

    def start(self) -> None:
        """Begin again after ``stop``."""
        self._delivery.reopen()
        self._actor.tell("start")

    def retry_now(self) -> None:
        """Do not wait for the end of the backoff."""
        self._actor.tell("retry_now")

    def reset(self) -> None:
        """Forget all failures; leave BackingOff or Failed and try again."""
        if not self._broke:
            self._delivery.fail(None)
        self._actor.tell("reset")

    # Its changes.

    def __aiter__(self) -> AsyncIterator[Transaction]:
        return self

    async def __anext__(self) -> Transaction:
        """Wait for the next transaction.

        Raises:
            SlotFailed: the machine is in Failed, and does not revive by itself.
        """
        transaction = await self._delivery.next_transaction()
        if transaction is None:
            raise StopAsyncIteration
        return transaction

    async def ack(self, transaction: Transaction) -> None:
        """Say that the host has all of a transaction safe; the server may forget it.

        Only what is acknowledged without a gap is confirmed. Where the session was lost meanwhile,
        this waits until the slot is ours again, and counts if nobody moved the slot.

        Raises:
            AckRefused: its end was not read.
            LeaseLost: another consumer moved the slot meanwhile, or the keeper was stopped.
            SlotFailed: the keeper failed meanwhile.
        """
        await self._delivery.acknowledge(transaction)
        if self._reply is None:
            self._reply = self._clock.call_later(REPLY_DELAY, self._send_reply)

    def _send_reply(self) -> None:
        self._reply = None
        with suppress(SessionError):  # a session that is gone says so to its own operation
            self._operations.send_status()

    def _report(self, error: Exception) -> None:
        self._actor.report(error)

    # What it says of itself.

    @property
    def state(self) -> State:
        """The state the machine is in."""
        return self._engine.state

    @property
    def health(self) -> Health:
        """How it is, now."""
        failure = self._engine.failure
        verdict = self._actor.trouble.verdict if self._actor.trouble else None
        return Health(
            slot=self.slot,
            state=self.state,
            for_seconds=self._clock.monotonic() - self._actor.entered_at,
            session_open="session_open" in self._engine.facts,
            lock_held="lock_held" in self._engine.facts,
            attempt=failure.failures if failure else None,
            next_try=self._actor.timers.remaining("backoff"),
            error_class=failure.error_class if failure else None,
            reason=verdict.reason if verdict else None,
            remedy=verdict.remedy if verdict else None,
            holder=self._holder(),
            flushed=self._delivery.progress.flushed,
            waiting_bytes=self._delivery.waiting_bytes,
        )

    def _holder(self) -> str | None:
        operations = self._operations
        if operations.holder is not None:
            return str(operations.holder)
        waiting = self.state == "Locking" and operations.session is not None
        holder = operations.session.lock_holder if waiting and operations.session else None
        return str(holder) if holder else None

    def why(self) -> str:
        """Say in a sentence which state it is in, why, and until when."""
        return self.health.why()

    # Waiting for a state.

    async def wait_for(self, *states: State) -> State:
        """Wait until the machine is in one of ``states``; give the one it is in.

        Raises:
            SlotFailed: it is in Failed, which is not waited for, and does not revive by itself.
            BadInput: there is no such state.
        """
        for state in states:
            if state not in STATES:
                raise BadInput(f"there is no state '{state}'; the states are {', '.join(STATES)}")
        reached = await self._reach(*states, *(() if self._revives else ("Failed",)))
        if reached == "Failed" and "Failed" not in states:
            raise self._failure()
        return reached

    async def _reach(self, *states: str) -> State:
        if self._task is None:
            if self._written in states:
                return self._written
            raise BadInput("this keeper does not run; use it in 'async with'")
        reached: asyncio.Future[State] = asyncio.get_running_loop().create_future()

        def look(record: Record) -> None:
            if record.dest in states and not reached.done():
                reached.set_result(record.dest)  # type: ignore[arg-type]  # one of the six

        stop_listening = self.journal.listen(look)
        either: set[asyncio.Future[Any]] = {reached, self._task}
        try:
            await self._settled(self._task)
            if self._written in states:
                return self._written
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop_listening()
        if not reached.done():
            reached.cancel()
            if not self._task.cancelled():
                self._task.result()
            raise BadInput("this keeper was closed")
        return reached.result()

    async def _settled(self, running: asyncio.Task[None]) -> None:
        """Let what was asked of the machine be done first: a state of before is no answer to it."""
        settled = asyncio.create_task(self._actor.settled())
        try:
            await asyncio.wait({settled, running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            settled.cancel()

    def _follow(self, record: Record) -> None:
        """Let those who wait for changes know of Failed, and of its end."""
        self._written = cast("State", record.dest)
        if record.dest != "Failed":
            self._delivery.fail(None)
        elif not self._revives:
            self._delivery.fail(self._failure())

    def _failure(self) -> SlotFailed:
        trouble = self._actor.trouble
        if trouble is None:
            return SlotFailed(f"slot '{self.slot}' failed.", error_class="unknown", remedy="")
        error = trouble.error
        known = error if isinstance(error, SessionError) else None
        failed = SlotFailed(
            trouble.verdict.reason,
            error_class=trouble.verdict.error_class,
            remedy=trouble.verdict.remedy,
            phase=known.phase if known else None,
            sqlstate=known.sqlstate if known else None,
            facts=known.facts if known else None,
        )
        failed.__cause__ = error
        return failed


def _of_bug(error: Exception) -> SlotFailed:
    failed = SlotFailed(
        f"the keeper itself broke: {type(error).__name__}: {error}.",
        error_class="protocol_or_bug",
        remedy="Report this as a bug of slotkeeper.",
    )
    failed.__cause__ = error
    return failed


def _first_of(group: ExceptionGroup[Exception]) -> Exception:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first


def _timer_lengths(
    spec: Spec, lease: float, chosen: Mapping[str, float | None]
) -> dict[str, float | None]:
    """Give the length of each timer: what the host chose, or else what the file says."""
    lengths = {
        name: timer.seconds(lease)
        for state in spec.states.values()
        for name, timer in state.timers.items()
        if timer.policy is None
    }
    for name, length in chosen.items():
        if name not in lengths:
            known = ", ".join(sorted(lengths))
            raise BadInput(f"there is no timer '{name}'; the timers are {known}")
        if length is not None and not 0 < length <= LONGEST_SLICE:
            raise BadInput(
                f"{name} is {length:g} s; it must be above 0 and at most {LONGEST_SLICE} s"
            )
    return {**lengths, **chosen}


def _refuse_unusable(slot_policy: str, lease: float, buffer_bytes: int) -> None:
    if slot_policy not in ("require", "create"):
        raise BadInput(f"slot_policy is '{slot_policy}'; it is 'require' or 'create'")
    if not 1 <= lease <= LONGEST_LEASE:
        raise BadInput(f"lease is {lease:g} s; it must be from 1 s to {LONGEST_LEASE} s")
    if buffer_bytes < 1:
        raise BadInput(f"buffer_bytes is {buffer_bytes}; it must be at least 1")


def _refuse_unusable_rate(attempt_rate: float, attempt_burst: int, lock_slice: float) -> None:
    if not attempt_rate > 0 or attempt_burst < 1:
        raise BadInput("attempt_rate must be above 0 and attempt_burst at least 1")
    if not 2 / attempt_rate <= lock_slice:
        raise BadInput(
            f"lock_slice is {lock_slice:g} s; at attempt_rate {attempt_rate:g} it must be from "
            f"{2 / attempt_rate:g} s to {LONGEST_SLICE} s"
        )
