"""One libpq connection on asyncio.

libpq is used through ``psycopg.pq`` in its non-blocking mode, without psycopg's Connection: COPY
BOTH outlives every statement, needs one reader for its whole life, and must survive a cancelled
wait. The rules followed are those of docs: libpq-connect.html (PQconnectPoll), libpq-async.html
and libpq-copy.html.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import psycopg
from psycopg import pq

from fsm.errors import Phase, SessionError
from fsm.postgres import faults, readiness
from fsm.postgres.connecting import Trying
from fsm.postgres.faults import Notice

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from psycopg.pq.abc import PGconn, PGresult

    from fsm.postgres.conninfo import Attempt

__all__ = ["Drained", "Notice", "Wire", "connect_first", "rows"]

_T = TypeVar("_T")

_FAILURES = frozenset(
    {pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.NONFATAL_ERROR, pq.ExecStatus.BAD_RESPONSE}
)
_COPIES = frozenset({pq.ExecStatus.COPY_BOTH, pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT})

# One PQconsumeInput reads at least this much where there is so much (pqReadData in fe-misc.c), so
# having got less means that the socket was read empty.
_ONE_READ = 8192
# How often a read is repeated for one drain while TLS leaves it open whether there is more.
_TLS_READS = 8

# SQLSTATE cannot_connect_now: the one refusal after which libpq goes on to the next host.
_CANNOT_CONNECT_NOW = "57P03"


class Drained(NamedTuple):
    """What one ``Wire.drain`` took out.

    Attributes:
        messages: CopyData payloads, in order; slices of them keep libpq's buffer alive.
        size: bytes of all of them together.
        more: something is left to hand out that the socket will not announce: call ``drain`` again.
    """

    messages: list[memoryview]
    size: int
    more: bool


def rows(result: PGresult) -> list[tuple[str | None, ...]]:
    """Give the rows of a result; None is NULL, all else is Postgres' text format."""
    return [
        tuple(_text(result.get_value(row, column)) for column in range(result.nfields))
        for row in range(result.ntuples)
    ]


async def connect_first(
    attempts: Sequence[Attempt],
    *,
    on_notice: Callable[[Notice], None] | None = None,
    seconds: float | None = None,
) -> Wire:
    """Connect to the first of several that takes us.

    As in libpq, a server that answers ends the search, except by 57P03 (it is starting or
    stopping) and by a ``target_session_attrs`` that it does not meet.

    Args:
        attempts: what ``conninfo.attempts`` listed; at least one.
        on_notice: as for ``Wire.connect``.
        seconds: bounds each attempt that sets no ``connect_timeout`` of its own.

    Raises:
        SessionError: of the last attempt made.
    """
    for attempt in attempts[:-1]:
        try:
            return await Wire.connect(attempt, on_notice=on_notice, seconds=seconds)
        except SessionError as error:
            if error.sqlstate not in {None, _CANNOT_CONNECT_NOW}:
                raise
    return await Wire.connect(attempts[-1], on_notice=on_notice, seconds=seconds)


class Wire:
    """One connection: statements by simple query, then perhaps one stream.

    An exchange that is cancelled closes the connection: its answer would be taken for the next
    one's. Not for use from several tasks at once, except ``finish``.

    Attributes:
        on_notice: called from the event loop with every NOTICE and WARNING, before what the server
            sent after it is handed out. None drops them.
    """

    def __init__(
        self, pgconn: PGconn, fd: int, on_notice: Callable[[Notice], None] | None = None
    ) -> None:
        """Take over a connection that is up. ``Wire.connect`` makes one."""
        self.on_notice = on_notice
        self._pgconn = pgconn
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._finished = False
        self._waiter: asyncio.Future[None] | None = None
        self._callback: Callable[[], None] | None = None
        self._nudged: asyncio.Handle | None = None
        self._backlog: deque[bytes] = deque()
        self._writing = False
        self._unread = False
        self._dead: psycopg.OperationalError | None = None
        self._end: SessionError | None = None
        pgconn.nonblocking = 1
        pgconn.notice_handler = self._notice

    # --- connecting

    @classmethod
    async def connect(
        cls,
        attempt: Attempt,
        *,
        on_notice: Callable[[Notice], None] | None = None,
        seconds: float | None = None,
    ) -> Wire:
        """Connect. A cancelled or failed attempt leaves nothing open.

        Args:
            attempt: what ``conninfo.attempts`` listed.
            on_notice: called with every NOTICE and WARNING from now on.
            seconds: how long it may take where the attempt sets no ``connect_timeout``.

        Raises:
            SessionError: in phase ``connect``, ``ssl`` or ``startup``; its facts are those of
                ``fsm.postgres.connecting``.
            BadInput: the event loop cannot watch sockets.
        """
        trying = Trying(attempt)
        try:
            async with asyncio.timeout(attempt.seconds or seconds):
                await trying.until_up()
            return cls(trying.pgconn, trying.pgconn.socket, on_notice)
        except TimeoutError:
            raise trying.timed_out() from None
        except BaseException:
            trying.pgconn.finish()
            raise

    @property
    def closed(self) -> bool:
        """The connection is finished, or libpq found it lost."""
        return self._finished or self._pgconn.status != pq.ConnStatus.OK

    @property
    def socket(self) -> int:
        """The file descriptor, -1 when closed or given up."""
        return self._fd

    @property
    def backend_pid(self) -> int:
        """The process of the server; 0 when closed."""
        return 0 if self._finished else self._pgconn.backend_pid

    @property
    def server_version(self) -> int:
        """150018 for 15.18; 0 when closed."""
        return 0 if self._finished else self._pgconn.server_version

    def parameter(self, name: str) -> str | None:
        """Give what the server last reported of a parameter (ParameterStatus), None if nothing."""
        value = None if self._finished else self._pgconn.parameter_status(name.encode())
        return None if value is None else value.decode("utf-8", "replace")

    def finish(self) -> None:
        """Close at once. May be called at any time, twice too; who waits on it gets an error."""
        if self._finished:
            return
        self._finished = True
        self.unwatch()
        self._detach()
        self._backlog.clear()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._pgconn.notice_handler = None
        self._pgconn.finish()

    # --- statements

    async def query(self, sql: str, *, phase: Phase) -> list[PGresult]:
        """Run SQL or a replication command by the simple query protocol.

        After an error that leaves the connection whole, the next query may be sent.

        Args:
            sql: one or more statements. Replication commands are upper case.
            phase: what an error is to say.

        Raises:
            SessionError: of the first error result, or that the connection is lost (fact ``eof``)
                or was closed by ``finish`` (fact ``closed``).
        """
        results = await self._exchange(sql, phase)
        if results and results[-1].status in _COPIES:
            self.finish()
            raise SessionError("the statement began a COPY: the connection is closed", phase=phase)
        return results

    async def start_copy_both(self, command: str, *, phase: Phase = "start") -> None:
        """Send START_REPLICATION and wait until COPY BOTH is open.

        Raises:
            SessionError: the server refused, which leaves the connection whole, or it is lost.
        """
        results = await self._exchange(command, phase)
        if not results or results[-1].status != pq.ExecStatus.COPY_BOTH:
            self.finish()
            raise SessionError(
                "the server did not begin to stream: this is no walsender connection", phase=phase
            )
        # The first messages may have come together with the answer.
        self._unread = True

    async def _exchange(self, sql: str, phase: Phase) -> list[PGresult]:
        self._open_or_raise(phase)
        if self._end is not None:
            raise SessionError("the stream has ended: connect anew", phase=phase) from self._end
        self.unwatch()
        try:
            self._pgconn.send_query(sql.encode())
        except psycopg.OperationalError as error:
            self._absorb(error)
        return self._judged(await self._uncancelled(self._results(phase)), phase)

    async def _uncancelled(self, exchange: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await exchange
        except asyncio.CancelledError:
            # Its answer would be taken for the next one's.
            self.finish()
            raise

    def _judged(self, results: list[PGresult], phase: Phase) -> list[PGresult]:
        # The first error has the reason: after a FATAL, libpq adds one of its own.
        for result in results:
            if result.status in _FAILURES:
                raise faults.from_result(result, phase)
        if self._dead is not None:
            raise faults.lost(phase, self._dead)
        return results

    async def _results(self, phase: Phase) -> list[PGresult]:
        results: list[PGresult] = []
        while True:
            while self._fd >= 0 and (not self._all_out() or self._pgconn.is_busy()):
                await self._moved(phase)
            if self._dead is not None and self._pgconn.status == pq.ConnStatus.OK:
                # libpq takes the socket for open, so get_result could wait for it.
                return results
            result = self._pgconn.get_result()
            if self._pgconn.status != pq.ConnStatus.OK:
                self._detach()
            if result is None:
                return results
            results.append(result)
            if result.status in _COPIES:
                return results

    # --- the stream

    def watch(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever there may be something to ``drain``; it replaces another."""
        self._open_or_raise("streaming")
        self._callback = callback
        if self._fd >= 0:
            self._loop.add_reader(self._fd, callback)
        if self._unread or self._fd < 0:
            self._nudge()

    def unwatch(self) -> None:
        """Stop calling, so that TCP holds the server up. What we owe still goes out."""
        self._callback = None
        if self._nudged is not None:
            self._nudged.cancel()
            self._nudged = None
        if self._fd < 0:
            return
        if self._writing:
            self._loop.add_reader(self._fd, self._push)
        else:
            self._loop.remove_reader(self._fd)

    def drain(self, limit: int) -> Drained:
        """Take out the messages that have arrived, without waiting.

        Args:
            limit: how many at most, so that the event loop is not held for long.

        Raises:
            SessionError: the stream is at its end and nothing is left to hand out; phase
                ``streaming``. The server's error where it sent one. Without SQLSTATE: fact
                ``end_of_copy`` (the server ended the stream in order, as on shutdown), ``eof`` (the
                connection is lost), ``protocol`` (libpq cannot follow) or ``closed`` (by us).
        """
        if self._end is None:
            self._open_or_raise("streaming")
            messages, size = self._take(limit)
            if messages or self._end is None:
                return Drained(messages, size, more=self._unread or self._end is not None)
        raise self._end

    def _take(self, limit: int) -> tuple[list[memoryview], int]:
        messages: list[memoryview] = []
        size = since_read = 0
        take = self._pgconn.get_copy_data
        if not self._unread:
            self._consume()
        self._unread = False
        try:
            while len(messages) < limit:
                count, data = take(1)
                if count > 0:
                    messages.append(data)
                    since_read += count
                    continue
                size += since_read
                if count < 0:
                    self._ended(self._why_ended())
                    return messages, size
                if self._dead is not None:
                    self._ended(faults.lost("streaming", self._dead))
                    return messages, size
                if since_read < _ONE_READ:
                    return messages, size
                since_read = 0
                self._consume()
        except psycopg.OperationalError as error:
            self._ended(faults.lost("streaming", error, {"protocol": True, "eof": False}))
            return messages, size + since_read
        self._unread = True
        return messages, size + since_read

    def _why_ended(self) -> SessionError:
        # What ends a COPY is a whole message in libpq's buffer: get_result does not wait for it.
        result = self._pgconn.get_result()
        if result is not None and result.status in _FAILURES:
            return faults.from_result(result, "streaming")
        return SessionError(
            "the server ended the stream in order, which it does when it shuts down",
            phase="streaming",
            facts={"end_of_copy": True},
        )

    def _ended(self, error: SessionError) -> None:
        self._end = error
        self._detach()

    def send_copy(self, data: bytes) -> None:
        """Send one CopyData message without waiting. What the socket does not take goes out later.

        While nobody watches, this is what finds out that the server has hung up.

        Raises:
            SessionError: the stream has ended or the connection is lost; phase ``standby_status``.
                What ``drain`` raises says why.
        """
        self._open_or_raise("standby_status")
        if self._dead is not None:
            raise faults.lost("standby_status", self._dead)
        if self._end is not None:
            raise SessionError("the stream has ended", phase="standby_status") from self._end
        if self._callback is None and self._hung_up():
            raise faults.lost(
                "standby_status", psycopg.OperationalError("the server closed the connection")
            )
        self._backlog.append(data)
        self._push()

    async def end_copy(self) -> None:
        """End the stream: CopyDone, then read the server's rest and its answer.

        Messages that still arrive are dropped. Nothing to do where the stream has ended by itself.
        Waits as long as the server takes: bound it with ``asyncio.timeout``.

        Raises:
            SessionError: the server answered with an error, or is gone; phase ``streaming``.
        """
        if self._end is not None:
            return
        self._open_or_raise("streaming")
        self.unwatch()
        self._stop_writing()
        self._judged(await self._uncancelled(self._last_results()), "streaming")
        self._ended(SessionError("we ended the stream", phase="streaming", facts={"closed": True}))

    async def _last_results(self) -> list[PGresult]:
        await self._sent()
        try:
            while self._fd >= 0 and not self._pgconn.put_copy_end():
                await self._moved("streaming")
            await self._sent()
            while (count := self._pgconn.get_copy_data(1)[0]) >= 0:
                if count == 0 and self._fd < 0:
                    return []
                if count == 0:
                    await self._moved("streaming")
        except psycopg.OperationalError as error:
            self._absorb(error)
        return await self._results("streaming")

    async def _sent(self) -> None:
        while not self._all_out():
            await self._moved("streaming")

    # --- the socket

    def _open_or_raise(self, phase: Phase) -> None:
        if self._finished:
            raise SessionError(
                "the connection was closed by us", phase=phase, facts={"closed": True}
            )

    def _consume(self) -> None:
        try:
            self._pgconn.consume_input()
            if self._pgconn.ssl_in_use:
                self._consume_tls()
        except psycopg.OperationalError as error:
            self._absorb(error)

    def _consume_tls(self) -> None:
        # libpq may take only a part of a TLS record of up to 16 KiB (15.18 does, 18.6 does not);
        # what OpenSSL keeps of it makes no socket readable. Once the kernel has no more, two reads
        # are enough for the rest.
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        for _ in range(_TLS_READS):
            if not poll.poll(0):
                self._pgconn.consume_input()
                self._pgconn.consume_input()
                return
            self._pgconn.consume_input()

    def _hung_up(self) -> bool:
        # libpq keeps quiet about a failed write until it has read all that came before the failure.
        poll = select.poll()
        poll.register(self._fd, 0)  # POLLERR and POLLHUP come unasked
        return bool(poll.poll(0))

    def _all_out(self) -> bool:
        """Hand over what we owe; True when nothing is left, or nobody is there to take it."""
        try:
            while self._backlog and self._pgconn.put_copy_data(self._backlog[0]):
                self._backlog.popleft()
            return not self._pgconn.flush()
        except psycopg.OperationalError as error:
            self._absorb(error)
            return True

    def _push(self) -> None:
        if self._all_out():
            self._stop_writing()
            return
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._push)
            if self._callback is None:
                # The server may be waiting for us to read before it reads; flush reads as well.
                self._loop.add_reader(self._fd, self._push)
        # A flush that would block has read the socket: it need not become readable again.
        self._nudge()

    def _stop_writing(self) -> None:
        if not self._writing:
            return
        self._writing = False
        self._loop.remove_writer(self._fd)
        if self._callback is None:
            self._loop.remove_reader(self._fd)

    def _nudge(self) -> None:
        if self._callback is None or self._nudged is not None:
            return
        self._nudged = self._loop.call_soon(self._call)

    def _call(self) -> None:
        self._nudged = None
        if self._callback is not None:
            self._callback()

    def _absorb(self, error: psycopg.OperationalError) -> None:
        # What the server said before it went may still be in libpq's buffer, so this is no end yet.
        self._dead = self._dead or error
        self._detach()
        self._nudge()

    def _detach(self) -> None:
        # At once when libpq may have closed the socket: its number can be another's in a moment,
        # and the event loop would watch or forget the wrong one.
        if self._fd >= 0:
            readiness.forget(self._loop, self._fd)
        self._fd = -1
        self._writing = False

    async def _moved(self, phase: Phase) -> None:
        """Wait until the socket is readable, or writable where we owe something; then read."""
        owing = not self._all_out()
        if self._fd < 0:
            return
        self._waiter = self._loop.create_future()
        try:
            events = readiness.READ | readiness.WRITE if owing else readiness.READ
            readiness.announce(self._fd, events, self._waiter)
            await self._waiter
        finally:
            self._waiter = None
            if self._fd >= 0:
                readiness.forget(self._loop, self._fd)
        self._open_or_raise(phase)
        self._consume()

    def _notice(self, result: PGresult) -> None:
        if self.on_notice is not None:
            self.on_notice(faults.notice(result))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")
