from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from fsm.errors import SessionError
from fsm.postgres.changes import Begin, Commit, Insert
from fsm.postgres.pgoutput import Decoder
from fsm.testing import MemoryServer, MemorySession, VirtualClock
from fsm.testing.session import FIRST_LSN, fresh_slot, refusal
from tests.support.keepers import settle


class Inbox:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        self.size = 0
        self.flushed = 0
        self.full = False
        self._decoder = Decoder()

    def put(self, messages: Sequence[Any], size: int) -> None:
        self.given += [found for one in messages if (found := self._decoder.decode(one))]
        self.size += size

    def keepalive(self, wal_end: int) -> None:
        self.given.append(wal_end)

    async def room(self) -> None:
        raise AssertionError("it is never full")

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [one.new.as_dict() for one in self.given if isinstance(one, Insert)]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def server(clock: VirtualClock) -> MemoryServer:
    return MemoryServer(clock)


async def opened(server: MemoryServer) -> MemorySession:
    session = server.session()
    await session.open()
    return session


async def streaming(
    server: MemoryServer, start_lsn: int = 0
) -> tuple[MemorySession, Inbox, asyncio.Task[None]]:
    session = await opened(server)
    assert await session.lock(1)
    await session.start(start_lsn)
    inbox = Inbox()
    task = asyncio.create_task(session.receive(inbox))
    await settle()
    return session, inbox, task


async def over(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})


# --- opening and closing


@pytest.mark.asyncio
async def test_a_session_learns_of_its_server(server: MemoryServer) -> None:
    session = server.session()
    facts = await session.open()
    assert facts.system_id == server.system_id
    assert facts.backend_pid == session.pid
    assert facts.wal_position == server.wal_position == FIRST_LSN
    assert server.sessions == [session]


@pytest.mark.asyncio
async def test_sessions_have_pids_of_their_own(server: MemoryServer) -> None:
    assert len({server.session().pid for _ in range(5)}) == 5


@pytest.mark.asyncio
async def test_closing_lets_go_of_all_and_may_be_repeated(server: MemoryServer) -> None:
    session, _, task = await streaming(server)
    session.close()
    session.close()
    assert server.sessions == []
    assert server.lock_owner is None
    assert server.slot_owner is None
    assert server.slot_facts == fresh_slot()
    await over(task)


@pytest.mark.asyncio
async def test_a_session_closed_while_it_opens_does_not_stay(server: MemoryServer) -> None:
    session = server.session()
    session.close()
    with pytest.raises(SessionError):
        await session.open()
    assert server.sessions == []


# --- scripts


@pytest.mark.asyncio
async def test_a_refusal_is_raised_as_often_as_told(server: MemoryServer) -> None:
    session = await opened(server)
    server.refuse("inspect", refusal("start", "57P01", slot="orders"), times=2)
    for _ in range(2):
        with pytest.raises(SessionError) as raised:
            await session.inspect()
        assert (raised.value.sqlstate, raised.value.phase) == ("57P01", "start")
        assert raised.value.facts == {"slot": "orders"}
        raised.value.facts["changed"] = True
    assert await session.inspect() == fresh_slot()
    assert server.calls["inspect"] == 3


@pytest.mark.asyncio
async def test_a_call_left_unanswered_waits_and_the_next_is_answered(
    clock: VirtualClock, server: MemoryServer
) -> None:
    session = await opened(server)
    server.leave_unanswered("ping")
    waiting = asyncio.create_task(session.ping())
    await clock.advance(1000)
    assert not waiting.done()
    await session.ping()
    await over(waiting)


# --- the lock


@pytest.mark.asyncio
async def test_a_free_lock_is_granted_at_once_and_again(server: MemoryServer) -> None:
    session = await opened(server)
    assert await session.lock(1)
    assert await session.lock(1)
    assert server.lock_owner is session
    assert session.lock_holder is None


@pytest.mark.asyncio
async def test_a_lock_that_is_held_is_waited_for_as_long_as_told(
    clock: VirtualClock, server: MemoryServer
) -> None:
    first, second = await opened(server), await opened(server)
    await first.lock(1)
    waiting = asyncio.create_task(second.lock(30))
    await clock.advance(29.9)
    assert not waiting.done()
    assert second.lock_holder is not None
    assert second.lock_holder.pid == first.pid
    await clock.advance(0.1)
    assert await waiting is False
    assert clock.next_due() is None


@pytest.mark.asyncio
async def test_the_lock_goes_to_those_who_wait_in_turn(server: MemoryServer) -> None:
    first, second, third = [await opened(server) for _ in range(3)]
    await first.lock(1)
    waiting = [asyncio.create_task(one.lock(30)) for one in (second, third)]
    await settle()
    first.close()
    await settle()
    assert server.lock_owner is second
    assert [one.done() for one in waiting] == [True, False]
    second.close()
    assert await waiting[1]
    assert server.lock_owner is third


@pytest.mark.asyncio
async def test_who_has_stopped_waiting_is_passed_over(server: MemoryServer) -> None:
    first, second, third = [await opened(server) for _ in range(3)]
    await first.lock(1)
    gone = asyncio.create_task(second.lock(30))
    waiting = asyncio.create_task(third.lock(30))
    await settle()
    await over(gone)
    first.close()
    assert await waiting
    assert server.lock_owner is third


@pytest.mark.asyncio
async def test_a_session_closed_while_it_waits_does_not_inherit_the_lock(
    server: MemoryServer,
) -> None:
    first, second = await opened(server), await opened(server)
    await first.lock(1)
    waiting = asyncio.create_task(second.lock(30))
    await settle()
    second.close()
    first.close()
    assert server.lock_owner is None
    await over(waiting)
    assert server.lock_owner is None


@pytest.mark.asyncio
async def test_a_session_severed_while_it_waits_hears_of_it_at_once(
    server: MemoryServer,
) -> None:
    first, second = await opened(server), await opened(server)
    await first.lock(1)
    waiting = asyncio.create_task(second.lock(30))
    await settle()
    second.break_off(refusal("lock", None, eof=True))
    await settle()
    assert waiting.done()
    with pytest.raises(SessionError):
        await waiting
    assert server.lock_owner is first


@pytest.mark.asyncio
async def test_severing_all_sessions_leaves_no_lock_whoever_waits(server: MemoryServer) -> None:
    sessions = [await opened(server) for _ in range(3)]
    await sessions[1].lock(1)
    waiting = [asyncio.create_task(one.lock(30)) for one in (sessions[0], sessions[2])]
    await settle()
    server.sever()
    await settle()
    assert server.lock_owner is None
    assert server.sessions == []
    for one in waiting:
        with pytest.raises(SessionError):
            await one


# --- the slot


@pytest.mark.asyncio
async def test_a_slot_has_one_consumer(server: MemoryServer) -> None:
    session, _, task = await streaming(server)
    other = await opened(server)
    found = await other.inspect()
    assert found is not None
    assert found.active_pid == session.pid
    with pytest.raises(SessionError) as raised:
        await other.start(0)
    assert raised.value.sqlstate == "55006"
    session.close()
    await over(task)
    await other.start(0)
    assert server.slot_owner is other


@pytest.mark.asyncio
async def test_a_rival_holds_the_slot_until_it_leaves(server: MemoryServer) -> None:
    session = await opened(server)
    server.rival_takes_slot(712)
    found = await session.inspect()
    assert found is not None
    assert found.active_pid == 712
    assert (await session.holder(712)).pid == 712
    with pytest.raises(SessionError) as raised:
        await session.start(0)
    assert (raised.value.sqlstate, raised.value.phase) == ("55006", "start")
    server.rival_leaves_slot()
    await session.start(0)


@pytest.mark.asyncio
async def test_a_missing_slot_is_none_and_cannot_be_started(server: MemoryServer) -> None:
    server.slot_facts = None
    session = await opened(server)
    assert await session.inspect() is None
    with pytest.raises(SessionError) as raised:
        await session.start(0)
    assert raised.value.sqlstate == "42704"


@pytest.mark.asyncio
async def test_a_slot_is_created_where_the_log_stands(server: MemoryServer) -> None:
    server.slot_facts = None
    server.commit({"id": "1"})
    session = await opened(server)
    created = await session.create()
    assert created.confirmed_flush_lsn == server.wal_position
    assert await session.inspect() == created


@pytest.mark.asyncio
async def test_a_missing_publication_is_an_error(server: MemoryServer) -> None:
    session = await opened(server)
    await session.check_publication()
    server.publication_exists = False
    with pytest.raises(SessionError) as raised:
        await session.check_publication()
    assert raised.value.facts["finding"] == "publication_missing"


# --- the stream


@pytest.mark.asyncio
async def test_committed_transactions_are_sent_as_pgoutput_writes_them(
    server: MemoryServer,
) -> None:
    _, inbox, task = await streaming(server)
    commit_lsn = server.commit({"id": "1", "note": None}, {"id": "2", "note": "x"})
    await settle()
    begin, first, second, commit = inbox.given
    assert isinstance(begin, Begin)
    assert isinstance(commit, Commit)
    assert begin.commit_lsn == commit.commit_lsn == commit_lsn
    assert commit.end_lsn == server.wal_position
    assert [one.new.as_dict() for one in (first, second)] == [
        {"id": "1", "note": None},
        {"id": "2", "note": "x"},
    ]
    await over(task)


@pytest.mark.asyncio
async def test_what_was_committed_before_the_stream_began_is_sent_too(
    server: MemoryServer,
) -> None:
    server.commit({"id": "1"})
    _, inbox, task = await streaming(server)
    assert inbox.rows == [{"id": "1"}]
    await over(task)


@pytest.mark.asyncio
async def test_what_was_confirmed_is_not_sent_again(server: MemoryServer) -> None:
    session, inbox, task = await streaming(server)
    server.commit({"id": "1"})
    await settle()
    session.acknowledge(server.wal_position)
    server.commit({"id": "2"})
    await settle()
    session.close()
    await over(task)
    _, again, task = await streaming(server)
    assert inbox.rows == [{"id": "1"}, {"id": "2"}]
    assert again.rows == [{"id": "2"}]
    await over(task)


@pytest.mark.asyncio
async def test_a_stream_begins_where_it_is_asked_to_where_that_is_later(
    server: MemoryServer,
) -> None:
    server.commit({"id": "1"})
    start = server.wal_position
    server.commit({"id": "2"})
    _, inbox, task = await streaming(server, start)
    assert inbox.rows == [{"id": "2"}]
    await over(task)


@pytest.mark.asyncio
async def test_a_confirmation_never_moves_the_slot_back(server: MemoryServer) -> None:
    session, _, task = await streaming(server)
    session.acknowledge(FIRST_LSN + 100)
    session.acknowledge(FIRST_LSN + 50)
    assert server.slot_facts is not None
    assert server.slot_facts.confirmed_flush_lsn == FIRST_LSN + 100
    assert session.acknowledged == [FIRST_LSN + 100, FIRST_LSN + 50]
    await over(task)


@pytest.mark.asyncio
async def test_a_keepalive_tells_the_position_of_the_log(
    clock: VirtualClock, server: MemoryServer
) -> None:
    session, inbox, task = await streaming(server)
    await clock.advance(3)
    server.keepalive()
    assert inbox.given == [server.wal_position]
    assert session.last_received == 3
    await over(task)


@pytest.mark.asyncio
@pytest.mark.parametrize(("mute", "answers"), [(False, 1), (True, 0)])
async def test_a_request_for_a_reply_is_answered_unless_the_server_is_mute(
    server: MemoryServer, *, mute: bool, answers: int
) -> None:
    session, inbox, task = await streaming(server)
    server.mute = mute
    session.acknowledge(FIRST_LSN, request_reply=True)
    assert len(inbox.given) == answers
    await over(task)


@pytest.mark.asyncio
async def test_a_severed_stream_ends_by_the_error_and_lets_go(server: MemoryServer) -> None:
    session, _, task = await streaming(server)
    error = refusal("streaming", "57P01")
    server.sever(error)
    with pytest.raises(SessionError) as raised:
        await task
    assert raised.value is error
    assert server.sessions == []
    assert server.slot_owner is None
    with pytest.raises(SessionError):
        await session.inspect()


@pytest.mark.asyncio
async def test_the_end_of_a_stream_confirms_and_is_remembered(server: MemoryServer) -> None:
    session, _, task = await streaming(server)
    server.commit({"id": "1"})
    await session.end_stream(server.wal_position)
    assert session.ended_gracefully
    assert server.slot_facts is not None
    assert server.slot_facts.confirmed_flush_lsn == server.wal_position
    await over(task)
