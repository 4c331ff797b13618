from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from fsm.errors import SessionError
from fsm.postgres.faults import Notice
from fsm.postgres.stream import DRAIN, Stream
from fsm.postgres.wire import Drained, Wire
from fsm.testing import VirtualClock, pgoutput
from tests.support.keepers import settle

LOST = SessionError("the connection was lost", phase="streaming", facts={"eof": True})
SKIPPED = Notice("55000", "LoadPublications", "WARNING", "skipped loading publication")


class FakeWire:
    """What a Stream needs of a Wire: it is drained, and written to."""

    def __init__(self) -> None:
        self.on_notice: Callable[[Notice], None] | None = None
        self.sent: list[bytes] = []
        self.drains: deque[Drained | SessionError | Notice] = deque()
        self.limits: list[int] = []
        self.broken: SessionError | None = None
        self._callback: Callable[[], None] | None = None

    # The Wire.

    def watch(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        if self.drains:
            asyncio.get_running_loop().call_soon(self._readable)

    def unwatch(self) -> None:
        self._callback = None

    def drain(self, limit: int) -> Drained:
        self.limits.append(limit)
        while self.drains and isinstance(self.drains[0], Notice):
            assert self.on_notice is not None
            self.on_notice(cast("Notice", self.drains.popleft()))
        if not self.drains:
            return Drained([], 0, more=False)
        found = self.drains.popleft()
        if isinstance(found, SessionError):
            raise found
        assert isinstance(found, Drained)
        return found

    def send_copy(self, data: bytes) -> None:
        if self.broken is not None:
            raise self.broken
        self.sent.append(data)

    # What a test does.

    @property
    def watched(self) -> bool:
        return self._callback is not None

    async def arrive(self, *messages: bytes, more: bool = False) -> None:
        """Let messages arrive, and the event loop tell of it."""
        self.drains.append(drained(*messages, more=more))
        self._readable()
        await settle()

    async def tell(self, what: SessionError | Notice) -> None:
        self.drains.append(what)
        self._readable()
        await settle()

    def _readable(self) -> None:
        if self._callback is not None:
            self._callback()


def drained(*messages: bytes, more: bool = False) -> Drained:
    return Drained([memoryview(one) for one in messages], sum(map(len, messages)), more=more)


class Inbox:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        self.size = 0
        self.flushed = 0
        self.full = False
        self.emptied = asyncio.Event()

    def put(self, messages: Sequence[Any], size: int) -> None:
        self.given += [bytes(one) for one in messages]
        self.size += size

    def keepalive(self, wal_end: int) -> None:
        self.given.append(wal_end)

    async def room(self) -> None:
        await self.emptied.wait()
        self.full = False


class Scene:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.wire = FakeWire()
        self.inbox = Inbox()
        self.stream = Stream(cast("Wire", self.wire), self.inbox, self.clock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.stream.run())
        await settle()
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})

    @property
    def replies(self) -> list[int]:
        """The LSNs that were confirmed."""
        return [status(one)["flushed"] for one in self.wire.sent]


def status(data: bytes) -> dict[str, Any]:
    """Read a standby status update (docs: protocol-replication.html)."""
    kind, written, flushed, applied, clock, reply = struct.unpack(">cQQQqB", data)
    assert kind == b"r"
    return {
        "written": written,
        "flushed": flushed,
        "applied": applied,
        "clock": clock,
        "reply": reply,
    }


def change(lsn: int) -> bytes:
    return pgoutput.insert(16384, ["1"], lsn=lsn)


async def end_of(task: asyncio.Task[None]) -> SessionError:
    assert task.done()
    with pytest.raises(SessionError) as raised:
        await task
    return raised.value


# --- receiving


@pytest.mark.asyncio
async def test_changes_are_handed_over_whole_and_in_order() -> None:
    scene = Scene()
    async with scene.running():
        await scene.wire.arrive(change(1), change(2))
        await scene.wire.arrive(change(3))
    assert scene.inbox.given == [change(1), change(2), change(3)]
    assert scene.inbox.size == 3 * len(change(1))


@pytest.mark.asyncio
async def test_a_keepalive_keeps_its_place_among_changes() -> None:
    scene = Scene()
    async with scene.running():
        await scene.wire.arrive(change(1), pgoutput.keepalive(50), change(60))
    assert scene.inbox.given == [change(1), 50, change(60)]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "messages",
    [
        [pgoutput.keepalive(5), change(10), change(20)],
        [pgoutput.keepalive(5), pgoutput.keepalive(6), change(10)],
        [change(10), pgoutput.keepalive(15), change(20)],
    ],
)
async def test_all_bytes_of_changes_are_counted_wherever_a_keepalive_stands(
    messages: list[bytes],
) -> None:
    scene = Scene()
    async with scene.running():
        await scene.wire.arrive(*messages)
    assert scene.inbox.size >= sum(len(one) for one in messages if one[:1] == b"w")
    assert scene.inbox.size <= sum(map(len, messages))


@pytest.mark.asyncio
async def test_no_more_than_a_portion_is_taken_at_once_and_the_rest_without_the_socket() -> None:
    scene = Scene()
    async with scene.running():
        scene.wire.drains.append(drained(change(1), more=True))
        scene.wire.drains.append(drained(change(2), more=True))
        await scene.wire.arrive(change(3))
        assert scene.inbox.given == [change(1), change(2), change(3)]
    assert set(scene.wire.limits) == {DRAIN}


@pytest.mark.asyncio
async def test_between_portions_others_have_their_turn() -> None:
    scene = Scene()
    turns: list[int] = []
    async with scene.running():
        for number in range(5):
            scene.wire.drains.append(drained(change(number), more=True))
        scene.wire._readable()
        while scene.wire.drains:
            turns.append(len(scene.inbox.given))
            await asyncio.sleep(0)
    assert turns == [1, 2, 3, 4]


@pytest.mark.asyncio
async def test_the_time_of_the_last_byte_is_known() -> None:
    scene = Scene()
    async with scene.running():
        await scene.clock.advance(7)
        assert scene.stream.last_received == 0
        await scene.wire.arrive(pgoutput.keepalive(5))
        assert scene.stream.last_received == 7


# --- backpressure


@pytest.mark.asyncio
async def test_the_socket_is_left_unread_while_the_inbox_is_full() -> None:
    scene = Scene()
    async with scene.running():
        assert scene.stream.reading
        scene.inbox.full = True
        await scene.wire.arrive(change(1), more=True)
        assert not scene.wire.watched
        assert not scene.stream.reading
        await scene.clock.advance(30)
        scene.inbox.emptied.set()
        await settle()
        assert scene.wire.watched
        assert scene.stream.reading
        assert scene.stream.reading_since == 30
        await scene.wire.arrive(change(2))
    assert scene.inbox.given == [change(1), change(2)]


@pytest.mark.asyncio
async def test_replies_go_out_while_the_host_is_behind() -> None:
    scene = Scene()
    async with scene.running():
        scene.inbox.full = True
        await scene.wire.arrive(change(1))
        scene.stream.acknowledge(1)
    assert scene.replies == [1]


# --- replying


@pytest.mark.asyncio
async def test_a_reply_tells_received_and_flushed_apart() -> None:
    scene = Scene()
    async with scene.running():
        await scene.wire.arrive(change(400), change(500))
        scene.stream.acknowledge(120)
    assert status(scene.wire.sent[0]) == {
        "written": 500,
        "flushed": 120,
        "applied": 120,
        "clock": (1_750_000_000 - 946_684_800) * 1_000_000,
        "reply": 0,
    }


@pytest.mark.asyncio
async def test_what_is_flushed_counts_as_received() -> None:
    scene = Scene()
    scene.stream.acknowledge(120)
    assert status(scene.wire.sent[0])["written"] == 120


@pytest.mark.asyncio
async def test_a_reply_can_be_asked_for() -> None:
    scene = Scene()
    scene.stream.acknowledge(120, request_reply=True)
    assert status(scene.wire.sent[0])["reply"] == 1


@pytest.mark.asyncio
async def test_a_keepalive_that_asks_is_answered_at_once_with_what_is_flushed() -> None:
    scene = Scene()
    scene.inbox.flushed = 120
    async with scene.running():
        await scene.wire.arrive(pgoutput.keepalive(500))
        assert scene.replies == []
        await scene.wire.arrive(pgoutput.keepalive(500, reply_requested=True))
    assert scene.replies == [120]
    assert status(scene.wire.sent[0])["written"] == 500


@pytest.mark.asyncio
async def test_a_keepalive_is_taken_before_it_is_answered() -> None:
    scene = Scene()
    original = scene.inbox.keepalive

    def confirm(wal_end: int) -> None:
        original(wal_end)
        scene.inbox.flushed = wal_end

    scene.inbox.keepalive = confirm  # type: ignore[method-assign]  # as a host with nothing to do
    async with scene.running():
        await scene.wire.arrive(pgoutput.keepalive(500, reply_requested=True))
    assert scene.replies == [500]


@pytest.mark.asyncio
async def test_requests_at_one_position_are_answered_ten_times_a_second() -> None:
    scene = Scene()
    async with scene.running() as task:
        for _ in range(90):
            await scene.wire.arrive(pgoutput.keepalive(500, reply_requested=True))
            await scene.clock.advance(0.01)
        assert not task.done()
    assert 8 <= len(scene.replies) <= 11


@pytest.mark.asyncio
async def test_a_server_that_is_stopping_ends_the_stream() -> None:
    scene = Scene()
    async with scene.running() as task:
        for _ in range(12):
            await scene.wire.arrive(pgoutput.keepalive(500, reply_requested=True))
            await scene.clock.advance(0.1)
        error = await end_of(task)
    assert error.facts["finding"] == "server_stopping"
    assert scene.clock.next_due() is None


@pytest.mark.asyncio
async def test_a_reply_put_off_that_cannot_be_sent_ends_the_stream() -> None:
    scene = Scene()
    async with scene.running() as task:
        await scene.wire.arrive(
            pgoutput.keepalive(500, reply_requested=True),
            pgoutput.keepalive(500, reply_requested=True),
        )
        assert len(scene.replies) == 1
        scene.wire.broken = LOST
        await scene.clock.advance(0.1)
        assert await end_of(task) is LOST


# --- ending


@pytest.mark.asyncio
async def test_a_lost_connection_ends_the_stream_with_its_error() -> None:
    scene = Scene()
    async with scene.running() as task:
        await scene.wire.tell(LOST)
        assert await end_of(task) is LOST
    assert not scene.wire.watched


@pytest.mark.asyncio
async def test_what_arrived_before_the_connection_was_lost_is_handed_over() -> None:
    scene = Scene()
    async with scene.running() as task:
        scene.wire.drains.append(drained(change(1), more=True))
        await scene.wire.tell(LOST)
        assert await end_of(task) is LOST
    assert scene.inbox.given == [change(1)]


@pytest.mark.asyncio
async def test_a_reply_that_cannot_be_sent_ends_the_stream() -> None:
    scene = Scene()
    scene.wire.broken = LOST
    async with scene.running() as task:
        await scene.wire.arrive(pgoutput.keepalive(500, reply_requested=True))
        assert await end_of(task) is LOST


@pytest.mark.asyncio
async def test_a_message_of_unknown_kind_ends_the_stream() -> None:
    scene = Scene()
    async with scene.running() as task:
        await scene.wire.arrive(change(1), b"z" + bytes(30), change(2))
        error = await end_of(task)
    assert error.facts == {"protocol": True}
    assert "0x7a" in str(error)
    assert change(2) not in scene.inbox.given


@pytest.mark.asyncio
@pytest.mark.parametrize("length", [0, 1, 17])
@pytest.mark.parametrize("whole", [change(1), pgoutput.keepalive(5)], ids=["change", "keepalive"])
async def test_a_message_that_is_cut_off_ends_the_stream(whole: bytes, length: int) -> None:
    scene = Scene()
    async with scene.running() as task:
        await scene.wire.arrive(whole[:length], change(2))
        error = await end_of(task)
    assert error.facts == {"protocol": True}
    assert scene.inbox.given == []


@pytest.mark.asyncio
async def test_an_inbox_that_breaks_ends_the_stream_and_is_not_lost_in_the_event_loop() -> None:
    scene = Scene()

    def broken(messages: Sequence[Any], size: int) -> None:
        raise ZeroDivisionError("a bug")

    scene.inbox.put = broken  # type: ignore[method-assign]  # that is the bug
    async with scene.running() as task:
        await scene.wire.arrive(change(1))
        assert task.done()
        with pytest.raises(ZeroDivisionError):
            await task


@pytest.mark.asyncio
async def test_a_skipped_publication_ends_the_stream_and_nothing_behind_it_is_taken() -> None:
    scene = Scene()
    async with scene.running() as task:
        await scene.wire.arrive(change(1))
        scene.wire.drains.append(SKIPPED)
        await scene.wire.arrive(pgoutput.keepalive(500, reply_requested=True), change(600))
        error = await end_of(task)
    assert error.facts["finding"] == "publication_skipped"
    assert error.sqlstate == "55000"
    assert scene.inbox.given == [change(1)]
    assert scene.replies == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "notice",
    [
        Notice("01000", "exec_simple_query", "WARNING", "a warning"),
        Notice("55000", "another_function", "WARNING", "a warning"),
        Notice(None, None, None, ""),
    ],
)
async def test_another_notice_does_not_end_the_stream(notice: Notice) -> None:
    scene = Scene()
    async with scene.running() as task:
        scene.wire.drains.append(notice)
        await scene.wire.arrive(change(1))
        assert not task.done()
    assert scene.inbox.given == [change(1)]


@pytest.mark.asyncio
async def test_a_cancelled_stream_lets_go_of_wire_and_timers() -> None:
    scene = Scene()
    async with scene.running() as task:
        await scene.wire.arrive(*[pgoutput.keepalive(500, reply_requested=True)] * 3)
        assert scene.clock.next_due() is not None
        scene.wire.drains.extend(drained(change(number), more=True) for number in range(20))
        scene.wire._readable()
        task.cancel()
        await settle(50)
    assert task.cancelled()
    assert not scene.wire.watched
    assert scene.clock.next_due() is None
    assert len(scene.wire.drains) > 10
