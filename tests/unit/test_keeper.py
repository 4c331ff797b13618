from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

import fsm
from fsm.errors import AckRefused, BadInput, DecodeError, LeaseLost, SessionError, SlotFailed
from fsm.health import Health
from fsm.machine.loader import parse, shipped, shipped_path
from fsm.runtime.journal import Journal, Record
from fsm.testing import MemoryServer, MemorySession, VirtualClock, pgoutput
from fsm.testing.session import TABLE_OID, fresh_slot, refusal
from tests.support.keepers import Host, Middle, keeper_of, rows_of, settle

RESET = refusal("streaming", None, eof=True)
SHIPPED_CONTENTION = shipped().policy("error_wait", "contention")


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def server(clock: VirtualClock) -> MemoryServer:
    return MemoryServer(clock)


def ends_clean(server: MemoryServer) -> bool:
    """Does the server have nothing of ours any more?"""
    slot = server.slot_facts
    return (
        server.sessions == []
        and server.lock_owner is None
        and server.slot_owner is None
        and (slot is None or slot.active_pid is None)
    )


def holder_of(server: MemoryServer) -> MemorySession:
    """Give the session that streams."""
    session = server.slot_owner
    assert session is not None
    return session


def fail_at_publication(server: MemoryServer) -> None:
    server.publication_exists = False


def state_of(keeper: fsm.Keeper) -> str:
    """Give the state, without mypy taking it for unchanging."""
    return keeper.state


async def failure_of(keeper: fsm.Keeper) -> SlotFailed:
    with pytest.raises(SlotFailed) as raised:
        await anext(aiter(keeper))
    return raised.value


# --- beginning


@pytest.mark.asyncio
async def test_async_with_returns_at_once_in_locking(server: MemoryServer) -> None:
    server.leave_unanswered("open")
    async with keeper_of(server) as keeper:
        assert state_of(keeper) == "Locking"
        assert server.clock.monotonic() == 0
    assert ends_clean(server)


@pytest.mark.asyncio
async def test_a_keeper_is_used_once(server: MemoryServer) -> None:
    keeper = keeper_of(server)
    async with keeper:
        pass
    with pytest.raises(BadInput, match="was used already"):
        async with keeper:
            pass


@pytest.mark.asyncio
async def test_changes_reach_the_host_and_are_confirmed(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        host = Host(keeper)
        task = host.begin()
        server.commit({"id": "1"}, {"id": "2"})
        await keeper.wait_for("Streaming")
        server.commit({"id": "3"})
        await clock.advance(1)
        assert host.rows == [{"id": "1"}, {"id": "2"}, {"id": "3"}]
        assert server.slot_facts is not None
        assert server.slot_facts.confirmed_flush_lsn == server.wal_position
    await task
    assert ends_clean(server)


@pytest.mark.asyncio
async def test_acknowledgements_are_gathered_into_one_reply(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        await keeper.wait_for("Streaming")
        for number in range(10):
            server.commit({"id": str(number)})
        host = Host(keeper)
        task = host.begin()
        await clock.advance(0.1)
        assert len(host.rows) == 10
        assert server.calls["acknowledge"] == 1
        assert holder_of(server).acknowledged == [server.wal_position]
    await task


@pytest.mark.asyncio
async def test_an_acknowledgement_before_the_end_was_read_is_refused(server: MemoryServer) -> None:
    async with keeper_of(server) as keeper:
        server.commit({"id": "1"}, {"id": "2"})
        transaction = await anext(aiter(keeper))
        with pytest.raises(AckRefused):
            await keeper.ack(transaction)
        await rows_of(transaction)
        await keeper.ack(transaction)


@pytest.mark.asyncio
async def test_an_idle_servers_position_is_confirmed(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        await keeper.wait_for("Streaming")
        await clock.settle()
        server.commit()
        host = Host(keeper)
        task = host.begin()
        await clock.settle()
        server.keepalive()
        await clock.advance(1.1)
        assert host.rows == []
        assert keeper.health.flushed == server.wal_position
        assert holder_of(server).acknowledged[-1] == server.wal_position
    await task


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"slot_policy": "maybe"}, "slot_policy"),
        ({"lease": 0.5}, "lease"),
        ({"lease": float("nan")}, "lease"),
        ({"lease": float("inf")}, "lease"),
        ({"lease": 1e12}, "lease"),
        ({"lock_slice": 1.0}, "lock_slice"),
        ({"lock_slice": float("nan")}, "lock_slice"),
        ({"attempt_rate": 0}, "attempt_rate"),
        ({"attempt_burst": 0}, "attempt_burst"),
        ({"timers": {"lock_slize": 5}}, "no timer 'lock_slize'; the timers are acquire_timeout"),
        ({"slot": "Orders"}, "slot"),
        ({"slot": "x" * 64}, "slot"),
        ({"publication": ""}, "publication"),
        ({"publication": []}, "publication"),
        ({"lock_key": 2**63}, "lock_key"),
        ({"dsn": "postgresql://app:secret@host:port/shop"}, "DSN"),
    ],
)
async def test_what_cannot_be_used_is_refused_when_the_keeper_is_made(
    choices: dict[str, Any], words: str
) -> None:
    arguments = {"dsn": "host=memory", "slot": "orders", "publication": "orders", **choices}
    with pytest.raises(BadInput, match=words) as raised:
        fsm.Keeper(arguments.pop("dsn"), **arguments)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


# --- waiting for a state


@pytest.mark.asyncio
async def test_waiting_for_the_state_it_is_in_ends_at_once(server: MemoryServer) -> None:
    server.leave_unanswered("open")
    async with keeper_of(server) as keeper:
        assert await keeper.wait_for("Locking", "Streaming") == "Locking"


@pytest.mark.asyncio
async def test_waiting_for_no_state_of_ours_is_refused(server: MemoryServer) -> None:
    async with keeper_of(server) as keeper:
        with pytest.raises(BadInput, match="no state 'Flying'; the states are Idle, Locking"):
            await keeper.wait_for("Flying")  # type: ignore[arg-type]  # that is what is tried


@pytest.mark.asyncio
async def test_waiting_with_a_keeper_that_does_not_run_is_refused(server: MemoryServer) -> None:
    with pytest.raises(BadInput, match="does not run"):
        await keeper_of(server).wait_for("Streaming")


@pytest.mark.asyncio
async def test_waiting_for_a_state_raises_where_failed_makes_it_unreachable(
    server: MemoryServer,
) -> None:
    fail_at_publication(server)
    async with keeper_of(server) as keeper:
        with pytest.raises(SlotFailed) as raised:
            await keeper.wait_for("Streaming")
        assert raised.value.facts["finding"] == "publication_missing"
        assert await keeper.wait_for("Failed") == "Failed"


@pytest.mark.asyncio
async def test_waiting_for_a_state_ends_with_a_sentence_when_the_keeper_is_closed(
    server: MemoryServer,
) -> None:
    server.leave_unanswered("open")
    async with keeper_of(server) as keeper:
        waiting = asyncio.create_task(keeper.wait_for("Streaming"))
        await settle()
    with pytest.raises(BadInput, match="was closed"):
        await waiting


# --- what it says of itself


@pytest.mark.asyncio
async def test_idle_says_that_nothing_is_open(server: MemoryServer) -> None:
    assert keeper_of(server).why() == "Idle: nothing is open; start() begins."


@pytest.mark.asyncio
async def test_locking_says_that_a_session_is_opening(
    clock: VirtualClock, server: MemoryServer
) -> None:
    server.leave_unanswered("open")
    async with keeper_of(server) as keeper:
        await clock.advance(2)
        assert keeper.why() == "Locking for 2.0 s: a session is opening."


@pytest.mark.asyncio
async def test_locking_says_that_the_lock_was_asked_for(
    clock: VirtualClock, server: MemoryServer
) -> None:
    server.leave_unanswered("lock")
    async with keeper_of(server) as keeper:
        await clock.advance(2)
        assert keeper.why() == "Locking for 2.0 s: the lock of slot 'orders' was asked for."


@pytest.mark.asyncio
async def test_locking_says_who_holds_the_lock(clock: VirtualClock, server: MemoryServer) -> None:
    async with keeper_of(server) as first:
        await first.wait_for("Streaming")
        pid = holder_of(server).pid
        async with keeper_of(server) as keeper:
            await clock.advance(3)
            assert keeper.why() == (
                f"Locking for 3.0 s: the lock of slot 'orders' is held by pid {pid}, "
                "app 'slotkeeper'."
            )
            assert keeper.health.holder == f"pid {pid}, app 'slotkeeper'"


@pytest.mark.asyncio
async def test_acquiring_says_that_the_lock_is_ours(
    clock: VirtualClock, server: MemoryServer
) -> None:
    server.leave_unanswered("inspect")
    async with keeper_of(server) as keeper:
        await clock.advance(1)
        assert keeper.why() == (
            "Acquiring for 1.0 s: the lock is ours; slot 'orders' is being inspected and started."
        )
        assert keeper.health.lock_held


@pytest.mark.asyncio
async def test_streaming_says_so_and_for_how_long(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        await clock.advance(4)
        assert keeper.why() == "Streaming for 4.0 s: slot 'orders' is ours."


@pytest.mark.asyncio
async def test_streaming_remembers_trouble_until_work_is_proven(
    clock: VirtualClock, server: MemoryServer
) -> None:
    server.refuse("open", RESET, times=2)
    async with keeper_of(server) as keeper:
        await clock.run_until(lambda: keeper.state == "Streaming")
        assert "2 failures (transient_network) are not yet forgotten" in keeper.why()
        assert keeper.health.attempt == 2
        await clock.advance(31)
        assert keeper.why().endswith("slot 'orders' is ours.")
        assert keeper.health.attempt is None


@pytest.mark.asyncio
async def test_backing_off_says_until_when_which_attempt_and_why(server: MemoryServer) -> None:
    server.rival_takes_slot(pid=712)
    async with keeper_of(server) as keeper:
        await keeper.wait_for("BackingOff")
        assert keeper.why() == (
            "BackingOff, 0.5 s more: attempt 1, contention: slot 'orders' is held by pid 712, "
            "app 'etl'; the lock is ours."
        )
        health = keeper.health
        assert (health.error_class, health.attempt, health.next_try) == ("contention", 1, 0.5)
        assert health.lock_held
        assert health.holder == "pid 712, app 'etl'"


@pytest.mark.asyncio
async def test_failed_says_what_to_do(server: MemoryServer) -> None:
    fail_at_publication(server)
    async with keeper_of(server) as keeper:
        await keeper.wait_for("Failed")
        health = keeper.health
        assert keeper.why().startswith("Failed: attempt 1, configuration: publication 'orders'")
        assert health.remedy
        assert keeper.why().endswith(health.remedy)
        assert (health.session_open, health.lock_held, health.next_try) == (False, False, None)


@pytest.mark.asyncio
async def test_what_waits_for_the_host_is_counted(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        await keeper.wait_for("Streaming")
        await clock.settle()
        server.commit({"id": "1"})
        await clock.settle()
        assert keeper.health.waiting_bytes > 0


# --- Failed

UNFIT: list[tuple[str, dict[str, Any]]] = [
    ("slot_is_physical", {"slot_type": "physical"}),
    ("slot_of_other_database", {"same_database": False, "database": "other"}),
    ("slot_of_other_plugin", {"plugin": "wal2json"}),
    ("slot_is_temporary", {"temporary": True}),
    ("slot_lost", {"wal_status": "lost"}),
    ("slot_lost", {"invalidation_reason": "rows_removed"}),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("finding", "fields"), UNFIT)
async def test_an_unfit_slot_ends_in_failed(
    server: MemoryServer, finding: str, fields: dict[str, Any]
) -> None:
    server.slot_facts = replace(fresh_slot(), **fields)
    async with keeper_of(server) as keeper:
        failed = await failure_of(keeper)
        assert failed.facts["finding"] == finding
        assert failed.error_class in {"configuration", "data_loss"}
        assert failed.reason
        assert failed.remedy
        assert server.calls["start"] == 0
        assert ends_clean(server)


@pytest.mark.asyncio
async def test_a_slot_that_a_standby_copies_is_waited_for(server: MemoryServer) -> None:
    server.slot_facts = replace(fresh_slot(), synced=True)
    async with keeper_of(server) as keeper:
        assert await keeper.wait_for("BackingOff", "Streaming") == "BackingOff"
        assert keeper.health.error_class == "server_starting_or_stopping"


@pytest.mark.asyncio
async def test_the_iterator_raises_class_reason_remedy_and_cause(server: MemoryServer) -> None:
    fail_at_publication(server)
    async with keeper_of(server) as keeper:
        failed = await failure_of(keeper)
    assert failed.error_class == "configuration"
    assert "orders" in failed.reason
    assert "CREATE PUBLICATION" in failed.remedy
    assert failed.phase == "publication_check"
    assert isinstance(failed.__cause__, SessionError)


@pytest.mark.asyncio
async def test_a_host_that_waits_already_hears_of_the_failure(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        waiting = asyncio.create_task(failure_of(keeper))
        await keeper.wait_for("Streaming")
        await clock.settle()
        fail_at_publication(server)
        holder_of(server).break_off(RESET)
        await clock.run_until(waiting.done)
        assert (await waiting).error_class == "configuration"


@pytest.mark.asyncio
async def test_a_slot_that_is_required_and_missing_ends_in_failed(server: MemoryServer) -> None:
    server.slot_facts = None
    async with keeper_of(server, slot_policy="require") as keeper:
        failed = await failure_of(keeper)
    assert failed.facts["finding"] == "slot_missing"
    assert server.calls["create"] == 0


@pytest.mark.asyncio
async def test_a_slot_that_is_missing_is_created_where_that_is_allowed(
    clock: VirtualClock, server: MemoryServer
) -> None:
    server.slot_facts = None
    async with keeper_of(server, slot_policy="create") as keeper:
        host = Host(keeper)
        task = host.begin()
        await keeper.wait_for("Streaming")
        server.commit({"id": "1"})
        await clock.settle()
        assert host.rows == [{"id": "1"}]
    await task


@pytest.mark.asyncio
@pytest.mark.parametrize("slot_policy", ["require", "create"])
async def test_a_slot_that_was_dropped_under_us_is_data_loss(
    clock: VirtualClock, server: MemoryServer, slot_policy: str
) -> None:
    async with keeper_of(server, slot_policy=slot_policy) as keeper:
        await keeper.wait_for("Streaming")
        await clock.settle()
        server.slot_facts = None
        server.sever()
        await clock.run_until(lambda: keeper.state == "Failed")
        assert (await failure_of(keeper)).error_class == "data_loss"


@pytest.mark.asyncio
async def test_another_server_at_the_same_address_is_a_divergence(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        await keeper.wait_for("Streaming")
        await clock.settle()
        server.system_id = "7000000000000000002"
        server.sever()
        await clock.run_until(lambda: keeper.state == "Failed")
        assert (await failure_of(keeper)).error_class == "divergence"
        assert ends_clean(server)


@pytest.mark.asyncio
async def test_reset_leaves_failed_and_the_host_reads_on(
    clock: VirtualClock, server: MemoryServer
) -> None:
    fail_at_publication(server)
    async with keeper_of(server) as keeper:
        await failure_of(keeper)
        server.publication_exists = True
        keeper.reset()
        assert await keeper.wait_for("Streaming") == "Streaming"
        server.commit({"id": "1"})
        assert await rows_of(await anext(aiter(keeper))) == [{"id": "1"}]
        assert keeper.health.attempt is None


@pytest.mark.asyncio
async def test_failed_is_left_by_itself_after_revive_after(
    clock: VirtualClock, server: MemoryServer
) -> None:
    fail_at_publication(server)
    async with keeper_of(server, revive_after=600) as keeper:
        host = Host(keeper)
        task = host.begin()
        await keeper.wait_for("Failed")
        await clock.advance(599)
        assert state_of(keeper) == "Failed"
        assert not task.done()
        server.publication_exists = True
        await clock.advance(1)
        assert state_of(keeper) == "Streaming"
        server.commit({"id": "1"})
        await clock.settle()
        assert host.rows == [{"id": "1"}]
    await task


@pytest.mark.asyncio
async def test_failed_is_not_left_by_itself_by_default(
    clock: VirtualClock, server: MemoryServer
) -> None:
    fail_at_publication(server)
    async with keeper_of(server) as keeper:
        await keeper.wait_for("Failed")
        await clock.advance(86_400)
        assert state_of(keeper) == "Failed"
        assert server.calls["open"] == 1


@pytest.mark.asyncio
async def test_a_spent_budget_ends_in_failed_with_the_last_error(
    clock: VirtualClock, server: MemoryServer
) -> None:
    policy = shipped().policy("error_retry", "unknown")
    assert policy.max_retries is not None
    server.refuse("open", refusal("startup", "ZZ999"), times=100)
    async with keeper_of(server) as keeper:
        await clock.run_until(lambda: keeper.state == "Failed")
        assert server.calls["open"] == policy.max_retries + 1
        failed = await failure_of(keeper)
        assert (failed.error_class, failed.sqlstate) == ("unknown", "ZZ999")


@pytest.mark.asyncio
async def test_what_cannot_be_decoded_ends_in_failed_and_is_raised_to_the_host(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        await keeper.wait_for("Streaming")
        await clock.settle()
        inbox = holder_of(server)._inbox
        assert inbox is not None
        columns = [pgoutput.ColumnSpec("id", 25)]
        inbox.put(
            [
                pgoutput.begin(server.wal_position + 0x100, 700),
                pgoutput.relation(TABLE_OID, "orders", columns),
                pgoutput.insert(TABLE_OID, ["1"]),
                pgoutput.insert(99, ["2"]),
                pgoutput.commit(server.wal_position + 0x100, server.wal_position + 0x130),
            ],
            100,
        )
        before = keeper.health.flushed
        transaction = await anext(aiter(keeper))
        with pytest.raises(DecodeError):
            await rows_of(transaction)
        with pytest.raises(AckRefused):
            await keeper.ack(transaction)
        assert await keeper.wait_for("Failed") == "Failed"
        failed = await failure_of(keeper)
        assert failed.error_class == "protocol_or_bug"
        assert isinstance(failed.__cause__, DecodeError)
        assert keeper.health.flushed == before
        assert ends_clean(server)


# --- stopping


Bring = Callable[[MemoryServer, fsm.Keeper], Awaitable[object]]


async def _opening(server: MemoryServer, keeper: fsm.Keeper) -> None:
    await settle()
    assert server.calls["open"] == 1
    assert server.sessions == []


async def _waiting_for_lock(server: MemoryServer, keeper: fsm.Keeper) -> None:
    await settle()
    assert keeper.health.session_open
    assert not keeper.health.lock_held


async def _streaming(server: MemoryServer, keeper: fsm.Keeper) -> None:
    await keeper.wait_for("Streaming")
    await settle()


def _prepare(server: MemoryServer, place: str) -> None:
    match place:
        case "opening":
            server.leave_unanswered("open")
        case "waiting for the lock":
            server.leave_unanswered("lock")
        case "inspecting":
            server.leave_unanswered("inspect")
        case "starting":
            server.leave_unanswered("start")
        case "backing off with a session":
            server.rival_takes_slot()
        case "backing off without one":
            server.refuse("open", RESET)
        case "failed":
            fail_at_publication(server)


PLACES = {
    "opening": "Locking",
    "waiting for the lock": "Locking",
    "inspecting": "Acquiring",
    "starting": "Acquiring",
    "streaming": "Streaming",
    "backing off with a session": "BackingOff",
    "backing off without one": "BackingOff",
    "failed": "Failed",
}


@pytest.mark.asyncio
@pytest.mark.parametrize("place", PLACES)
async def test_a_stop_ends_at_once_in_every_state_and_iteration_ends(
    clock: VirtualClock, server: MemoryServer, place: str
) -> None:
    _prepare(server, place)
    async with keeper_of(server, revive_after=3600) as keeper:
        host = Host(keeper)
        task = host.begin()
        await clock.settle()
        assert state_of(keeper) == PLACES[place]
        stopping = asyncio.create_task(keeper.stop())
        await clock.settle()
        assert stopping.done()
        assert task.done()
        await task
        assert state_of(keeper) == "Idle"
        assert clock.monotonic() == 0
        if place == "backing off with a session":
            server.rival_leaves_slot()
        assert ends_clean(server)
    assert clock.next_due() is None


@pytest.mark.asyncio
async def test_a_stop_twice_is_a_stop(server: MemoryServer) -> None:
    async with keeper_of(server) as keeper:
        await keeper.wait_for("Streaming")
        await asyncio.gather(keeper.stop(), keeper.stop())
        await keeper.stop()
        assert state_of(keeper) == "Idle"


@pytest.mark.asyncio
async def test_a_stop_confirms_what_was_acknowledged(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        server.commit({"id": "1"})
        transaction = await anext(aiter(keeper))
        await rows_of(transaction)
        session = holder_of(server)
        await keeper.ack(transaction)
        await keeper.stop()
        assert session.ended_gracefully
        assert server.slot_facts is not None
        assert server.slot_facts.confirmed_flush_lsn == server.wal_position
    assert clock.monotonic() == 0


class _SlowEnd(MemorySession):
    """A session whose server takes its time to answer CopyDone."""

    async def end_stream(self, flushed: int) -> None:
        await self._server.clock.sleep(0.5)
        await super().end_stream(flushed)


@pytest.mark.asyncio
async def test_a_stop_is_over_when_all_is_closed(clock: VirtualClock, server: MemoryServer) -> None:
    sessions: list[_SlowEnd] = []

    def new_session() -> _SlowEnd:
        sessions.append(_SlowEnd(server, 2000))
        return sessions[-1]

    async with keeper_of(server, new_session=new_session) as keeper:
        await keeper.wait_for("Streaming")
        await clock.settle()
        stopping = asyncio.create_task(keeper.stop())
        await clock.advance(0.4)
        assert not stopping.done()
        await clock.advance(0.2)
        assert stopping.done()
        assert sessions[0].ended_gracefully
        assert ends_clean(server)
        await stopping


@pytest.mark.asyncio
async def test_leaving_async_with_ends_the_stream_gracefully(
    clock: VirtualClock, server: MemoryServer
) -> None:
    sessions: list[_SlowEnd] = []

    def new_session() -> _SlowEnd:
        sessions.append(_SlowEnd(server, 2000))
        return sessions[-1]

    async def use() -> None:
        async with keeper_of(server, new_session=new_session) as keeper:
            await keeper.wait_for("Streaming")

    using = asyncio.create_task(use())
    await clock.advance(1)
    await using
    assert sessions[0].ended_gracefully
    assert ends_clean(server)


@pytest.mark.asyncio
async def test_a_stopped_keeper_can_be_started_again(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        host = Host(keeper)
        task = host.begin()
        await keeper.wait_for("Streaming")
        server.commit({"id": "1"})
        await clock.settle()
        await keeper.stop()
        await task
        server.commit({"id": "2"})
        keeper.start()
        again = host.begin()
        await keeper.wait_for("Streaming")
        await clock.settle()
        assert host.rows == [{"id": "1"}, {"id": "2"}]
    await again


async def _raise_in(keeper: fsm.Keeper) -> None:
    async with keeper:
        await keeper.wait_for("Streaming")
        raise ZeroDivisionError


async def _acknowledge_and_raise_in(keeper: fsm.Keeper) -> None:
    async with keeper:
        transaction = await anext(aiter(keeper))
        await rows_of(transaction)
        await keeper.ack(transaction)
        raise ZeroDivisionError


@pytest.mark.asyncio
async def test_an_exception_of_the_host_leaves_at_once_and_passes(
    clock: VirtualClock, server: MemoryServer
) -> None:
    with pytest.raises(ZeroDivisionError):
        await _raise_in(keeper_of(server))
    assert ends_clean(server)
    assert clock.monotonic() == 0
    assert clock.next_due() is None


@pytest.mark.asyncio
async def test_a_keeper_left_by_an_exception_says_that_it_is_idle(server: MemoryServer) -> None:
    keeper = keeper_of(server)
    with pytest.raises(ZeroDivisionError):
        await _raise_in(keeper)
    assert keeper.state == "Idle"
    assert keeper.why() == "Idle: nothing is open; start() begins."
    assert not keeper.health.lock_held
    assert keeper.journal.last is not None
    assert (keeper.journal.last.state, keeper.journal.last.dest) == ("Streaming", "Idle")
    await keeper.stop()


@pytest.mark.asyncio
async def test_what_was_acknowledged_is_confirmed_although_the_host_raises(
    server: MemoryServer,
) -> None:
    server.commit({"id": "1"})
    with pytest.raises(ZeroDivisionError):
        await _acknowledge_and_raise_in(keeper_of(server))
    assert server.slot_facts is not None
    assert server.slot_facts.confirmed_flush_lsn == server.wal_position


@pytest.mark.asyncio
async def test_an_acknowledgement_after_the_end_says_that_the_keeper_was_stopped(
    server: MemoryServer,
) -> None:
    server.commit({"id": "1"})
    async with keeper_of(server) as keeper:
        transaction = await anext(aiter(keeper))
        await rows_of(transaction)
    with pytest.raises(LeaseLost, match="the keeper was stopped"):
        await keeper.ack(transaction)


# --- cancelling the host


def _waiting_scene(server: MemoryServer) -> None:
    server.leave_unanswered("lock")


def _rival_scene(server: MemoryServer) -> None:
    server.rival_takes_slot()


def _failing_scene(server: MemoryServer) -> None:
    fail_at_publication(server)


def _refusing_scene(server: MemoryServer) -> None:
    server.refuse("open", RESET, times=2)


def _plain_scene(server: MemoryServer) -> None:
    server.commit({"id": "1"}, {"id": "2"})
    server.commit({"id": "3"})


SCENES = [_plain_scene, _waiting_scene, _rival_scene, _failing_scene, _refusing_scene]


async def _use(server: MemoryServer) -> None:
    async with keeper_of(server) as keeper:
        seen = 0
        async for transaction in keeper:
            await rows_of(transaction)
            await keeper.ack(transaction)
            seen += 1
            if seen == 2:
                break


async def _run_for(steps: int, clock: VirtualClock) -> None:
    """Go on by so many rounds of the event loop; let time pass after every ten."""
    for step in range(steps):
        await asyncio.sleep(0)
        due = clock.next_due()
        if step % 10 == 9 and due is not None:
            clock._now = due
            clock._entries.pop(0).callback()


async def _all_is_gone(server: MemoryServer, clock: VirtualClock) -> bool:
    server.rival_leaves_slot()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    return ends_clean(server) and clock.next_due() is None and not left


@pytest.mark.asyncio
@pytest.mark.parametrize("prepare", SCENES)
@pytest.mark.parametrize("again_after", [None, 0, 1, 2, 3])
async def test_cancelling_the_host_at_any_moment_leaves_nothing_behind(
    prepare: Callable[[MemoryServer], None], again_after: int | None
) -> None:
    for cut in range(60):
        clock = VirtualClock()
        server = MemoryServer(clock)
        prepare(server)
        task = asyncio.create_task(_use(server))
        await _run_for(cut, clock)
        task.cancel()
        if again_after is not None:
            await _run_for(again_after, clock)
            task.cancel()
        await asyncio.wait({task})
        await settle(5)
        assert await _all_is_gone(server, clock), f"cancelled after {cut} rounds"


# --- bugs


class _Broken(RuntimeError):
    pass


class _BreakableRandom(Middle):
    """Breaks the engine in its midst, as a bug would, from a given moment on."""

    broken = False

    def random(self) -> float:
        if self.broken:
            raise _Broken("the engine broke")
        return super().random()


def _chain(error: BaseException | None) -> list[BaseException]:
    """Give an error, what it holds and what caused it."""
    if error is None:
        return []
    found = [error, *_chain(error.__cause__), *_chain(error.__context__)]
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            found += _chain(inner)
    return found


def _is_bug(error: BaseException) -> bool:
    return any(isinstance(one, _Broken) for one in _chain(error))


@pytest.mark.asyncio
async def test_a_bug_is_not_swallowed(clock: VirtualClock, server: MemoryServer) -> None:
    random = _BreakableRandom()
    keeper = keeper_of(server, random=random)
    failures: list[SlotFailed] = []

    async def use() -> None:
        async with keeper:
            await keeper.wait_for("Streaming")
            await clock.settle()
            random.broken = True
            server.sever()
            failures.append(await failure_of(keeper))
            keeper.reset()
            failures.append(await failure_of(keeper))

    with pytest.raises(Exception) as raised:  # noqa: PT011  (of which kind is asserted below)
        await use()
    assert _is_bug(raised.value)
    for failed in failures:
        assert failed.error_class == "protocol_or_bug"
        assert _is_bug(failed)
    assert len(failures) == 2
    assert ends_clean(server)
    assert clock.next_due() is None


@pytest.mark.asyncio
async def test_a_bug_ends_waiting_for_a_state(server: MemoryServer) -> None:
    random = _BreakableRandom()
    random.broken = True
    keeper = keeper_of(server, random=random)
    with pytest.raises(Exception) as raised:  # noqa: PT011  (of which kind is asserted below)
        await _raise_in(keeper)
    assert _is_bug(raised.value)
    assert ends_clean(server)


@pytest.mark.asyncio
async def test_a_session_that_breaks_in_an_unknown_way_is_not_taken_for_a_bug_of_ours(
    clock: VirtualClock, server: MemoryServer
) -> None:
    class Odd(MemorySession):
        async def inspect(self) -> Any:
            raise OSError(5, "an odd error")

    async with keeper_of(server, new_session=lambda: Odd(server, 2000)) as keeper:
        assert await keeper.wait_for("BackingOff") == "BackingOff"
        assert isinstance(keeper.journal.last, Record)
        assert keeper.journal.last.error_class


# --- the journal


@pytest.mark.asyncio
async def test_a_listener_that_raises_does_not_disturb(
    clock: VirtualClock, server: MemoryServer, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal()

    def broken(_: Record) -> None:
        raise RuntimeError("listener broke")

    journal.listen(broken)
    async with keeper_of(server, journal=journal) as keeper:
        await keeper.wait_for("Streaming")
        server.commit({"id": "1"})
        assert await rows_of(await anext(aiter(keeper))) == [{"id": "1"}]
    assert keeper.state == "Idle"
    assert "listener broke" in caplog.text


@pytest.mark.asyncio
async def test_each_step_is_in_the_journal(clock: VirtualClock, server: MemoryServer) -> None:
    server.rival_takes_slot()
    async with keeper_of(server) as keeper:
        await keeper.wait_for("BackingOff")
        records = list(keeper.journal)
        assert [(one.state, one.trigger, one.dest) for one in records] == [
            ("Idle", "start", "Locking"),
            ("Locking", "session_opened", "Locking"),
            ("Locking", "lock_granted", "Acquiring"),
            ("Acquiring", "slot_found", "Acquiring"),
            ("Acquiring", "error_wait", "BackingOff"),
        ]
        last = records[-1]
        assert (last.error_class, last.action, last.attempt) == ("contention", "wait", 1)
        assert last.delay == 0.5
        assert last.facts["sqlstate"] == "55006"
        assert last.facts["phase"] == "start"
        assert last.facts["active_pid"] == 712
        assert last.facts["row"] == "slot_is_taken"
        assert last.facts["holder"] == "pid 712, app 'etl'"
        assert "pid 712" in last.detail


@pytest.mark.asyncio
async def test_an_undisturbed_stream_writes_nothing(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        await clock.advance(60)
        before = len(keeper.journal)
        await clock.advance(3600)
        assert len(keeper.journal) == before
        assert state_of(keeper) == "Streaming"


# --- two keepers


@pytest.mark.asyncio
@pytest.mark.parametrize("way", ["severed", "stopped"])
async def test_the_waiting_keeper_takes_over_at_once(
    clock: VirtualClock, server: MemoryServer, way: str
) -> None:
    async with keeper_of(server) as first, keeper_of(server) as second:
        await first.wait_for("Streaming")
        one, two = Host(first), Host(second)
        tasks = [one.begin(), two.begin()]
        server.commit({"id": "1"})
        await clock.advance(100)
        assert state_of(second) == "Locking"
        before = clock.monotonic()
        if way == "severed":
            holder_of(server).break_off(RESET)
        else:
            await first.stop()
        await clock.settle()
        assert state_of(second) == "Streaming"
        assert clock.monotonic() == before
        server.commit({"id": "2"})
        await clock.advance(100)
        assert (one.rows, two.rows) == ([{"id": "1"}], [{"id": "2"}])
        assert state_of(first) == ("Locking" if way == "severed" else "Idle")
    for task in tasks:
        await task
    assert ends_clean(server)


@pytest.mark.asyncio
async def test_a_waiting_keeper_asks_once_a_slice_and_counts_no_failure(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as first:
        await first.wait_for("Streaming")
        async with keeper_of(server, lock_slice=30) as second:
            await clock.settle()
            before = server.calls["lock"]
            await clock.advance(3600)
            shortened = 30 * (1 - 0.25 * 0.5)
            assert server.calls["lock"] - before == 3600 // shortened
            assert second.health.attempt is None
            assert state_of(second) == "Locking"


@pytest.mark.asyncio
async def test_an_acknowledgement_is_refused_when_another_keeper_took_over(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as first, keeper_of(server) as second:
        server.commit({"id": "1"})
        transaction = await anext(aiter(first))
        await rows_of(transaction)
        holder_of(server).break_off(RESET)
        await clock.settle()
        other = Host(second)
        task = other.begin()
        await clock.advance(1)
        assert other.rows == [{"id": "1"}]
        acknowledging = asyncio.create_task(first.ack(transaction))
        await clock.advance(10)
        assert not acknowledging.done()
        await second.stop()
        await clock.advance(60)
        with pytest.raises(LeaseLost, match="another consumer moved the slot"):
            await acknowledging
    await task


@pytest.mark.asyncio
async def test_an_acknowledgement_counts_after_a_reconnect_that_nobody_used(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        server.commit({"id": "1"})
        transaction = await anext(aiter(keeper))
        await rows_of(transaction)
        server.sever()
        await clock.settle()
        assert transaction.lost
        acknowledging = asyncio.create_task(keeper.ack(transaction))
        await clock.run_until(acknowledging.done)
        await acknowledging
        await clock.advance(1)
        assert server.slot_facts is not None
        assert server.slot_facts.confirmed_flush_lsn == server.wal_position


@pytest.mark.asyncio
async def test_rows_are_seen_once_across_a_reconnect(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        server.commit({"id": "1"}, {"id": "2"}, {"id": "3"})
        transaction = await anext(aiter(keeper))
        first = await anext(transaction)
        server.sever()
        await clock.settle()
        reading = asyncio.create_task(rows_of(transaction))
        await clock.run_until(lambda: keeper.state == "Streaming")
        assert isinstance(first, fsm.Change)
        assert await reading == [{"id": "2"}, {"id": "3"}]
        await keeper.ack(transaction)


# --- a rival


@pytest.mark.asyncio
async def test_a_rival_that_holds_the_slot_for_an_hour_costs_the_attempts_of_the_policy(
    clock: VirtualClock, server: MemoryServer
) -> None:
    elapsed, expected = 0.0, 0
    while elapsed <= 3600:
        expected += 1
        elapsed += SHIPPED_CONTENTION.delay(expected, None, Middle())
    server.rival_takes_slot()
    async with keeper_of(server) as keeper:
        await clock.advance(3600)
        assert state_of(keeper) == "BackingOff"
        assert server.calls["start"] == expected
        assert keeper.health.attempt == expected
        assert expected < 150
        assert server.calls["open"] == 1
        assert server.calls["lock"] == 1


@pytest.mark.asyncio
async def test_retry_now_streams_at_once(clock: VirtualClock, server: MemoryServer) -> None:
    server.rival_takes_slot()
    async with keeper_of(server) as keeper:
        await clock.advance(3600)
        session = server.sessions[0]
        server.rival_leaves_slot()
        now = clock.monotonic()
        keeper.retry_now()
        await keeper.wait_for("Streaming")
        assert clock.monotonic() == now
        assert holder_of(server) is session
        assert keeper.health.attempt is not None


@pytest.mark.asyncio
async def test_retry_now_in_a_loop_is_paced_by_the_governor(
    clock: VirtualClock, server: MemoryServer
) -> None:
    server.rival_takes_slot()
    async with keeper_of(server, attempt_rate=1, attempt_burst=5) as keeper:
        for _ in range(600):
            keeper.retry_now()
            await clock.advance(0.1)
        assert server.calls["start"] <= 60 + 5
        assert "hot_loop" in {record.error_class for record in keeper.journal}


@pytest.mark.asyncio
async def test_reset_forgets_the_failures_and_tries_at_once(
    clock: VirtualClock, server: MemoryServer
) -> None:
    server.rival_takes_slot()
    async with keeper_of(server) as keeper:
        await clock.advance(600)
        before = keeper.health.attempt
        assert before is not None
        assert before > 5
        keeper.reset()
        await clock.settle()
        assert keeper.health.attempt == 1


@pytest.mark.asyncio
async def test_a_lock_that_comes_free_again_and_again_is_paced_all_the_same(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        for _ in range(6000):
            if server.sessions:
                server.sever()
            await clock.advance(0.1)
        assert server.calls["open"] < 600
        assert keeper.health.attempt is not None


# --- failures outlive sessions


@pytest.mark.asyncio
async def test_failures_survive_the_loss_of_sessions(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        for lost in range(1, 6):
            await clock.run_until(lambda: keeper.state == "Streaming")
            await clock.advance(1)
            server.sever()
            await clock.settle()
            assert state_of(keeper) == "BackingOff"
            assert keeper.health.attempt == lost


@pytest.mark.asyncio
async def test_failures_are_forgotten_after_proven_work(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server) as keeper:
        for _ in range(3):
            await clock.run_until(lambda: keeper.state == "Streaming")
            await clock.advance(31)
            server.sever()
            await clock.settle()
            assert keeper.health.attempt == 1


# --- a kept session


@pytest.mark.asyncio
async def test_a_kept_session_is_pinged_every_third_of_the_lease(
    clock: VirtualClock, server: MemoryServer
) -> None:
    server.rival_takes_slot()
    async with keeper_of(server, lease=10) as keeper:
        await clock.run_until(lambda: (keeper.health.next_try or 0) > 20)
        before = server.calls["ping"]
        await clock.advance(10)
        assert server.calls["ping"] - before == 3
        assert state_of(keeper) == "BackingOff"
        assert server.calls["open"] == 1


@pytest.mark.asyncio
async def test_a_failed_ping_lets_the_session_go_and_the_way_on_is_locking(
    clock: VirtualClock, server: MemoryServer
) -> None:
    server.rival_takes_slot()
    async with keeper_of(server) as keeper:
        await clock.run_until(lambda: (keeper.health.next_try or 0) > 20)
        attempt = keeper.health.attempt
        server.refuse("ping", refusal("lock", None, eof=True))
        await clock.advance(5)
        assert state_of(keeper) == "BackingOff"
        assert not keeper.health.lock_held
        assert server.lock_owner is None
        assert keeper.health.attempt == attempt
        server.rival_leaves_slot()
        states: list[str] = []
        keeper.journal.listen(lambda record: states.append(record.dest))
        await clock.run_until(lambda: keeper.state == "Streaming")
        assert states[0] == "Locking"
        assert server.calls["open"] == 2


@pytest.mark.asyncio
async def test_a_ping_that_is_never_answered_lets_the_session_go_too(
    clock: VirtualClock, server: MemoryServer
) -> None:
    server.rival_takes_slot()
    async with keeper_of(server, lease=9) as keeper:
        await clock.run_until(lambda: (keeper.health.next_try or 0) > 20)
        server.leave_unanswered("ping")
        await clock.advance(9)
        assert state_of(keeper) == "BackingOff"
        assert server.sessions == []


@pytest.mark.asyncio
async def test_a_ping_in_flight_when_the_backoff_ends_does_no_harm(
    clock: VirtualClock, server: MemoryServer
) -> None:
    server.rival_takes_slot()
    async with keeper_of(server, lease=10) as keeper:
        await clock.run_until(lambda: keeper.health.next_try == 4)
        server.leave_unanswered("ping")
        await clock.advance(3.9)
        assert server.calls["ping"] == 1
        server.rival_leaves_slot()
        await clock.advance(0.2)
        assert state_of(keeper) == "Streaming"
        assert server.calls["open"] == 1
        server.commit({"id": "1"})
        assert await rows_of(await anext(aiter(keeper))) == [{"id": "1"}]


@pytest.mark.asyncio
async def test_pings_go_on_after_one_was_left_in_flight(
    clock: VirtualClock, server: MemoryServer
) -> None:
    server.rival_takes_slot()
    async with keeper_of(server, lease=10) as keeper:
        await clock.run_until(lambda: keeper.health.next_try == 4)
        server.leave_unanswered("ping")
        await clock.advance(4)
        assert keeper.health.next_try == 8
        await clock.advance(7)
        assert server.calls["ping"] == 3
        assert server.calls["open"] == 1
        assert keeper.health.lock_held


# --- silence


class _Asking(MemorySession):
    """Notes when a reply was asked for."""

    asked: list[float]

    def acknowledge(self, lsn: int, *, request_reply: bool = False) -> None:
        if request_reply:
            self.asked.append(self._server.clock.monotonic())
        super().acknowledge(lsn, request_reply=request_reply)


@pytest.mark.asyncio
async def test_a_silent_server_is_asked_at_half_the_lease_and_given_up_after_it(
    clock: VirtualClock, server: MemoryServer
) -> None:
    asked: list[float] = []

    def new_session() -> _Asking:
        session = _Asking(server, 2000 + server.calls["open"])
        session.asked = asked
        return session

    server.mute = True
    async with keeper_of(server, lease=10, new_session=new_session) as keeper:
        await clock.advance(9.9)
        assert state_of(keeper) == "Streaming"
        assert asked == [5.0, 7.5]
        await clock.advance(0.1)
        assert state_of(keeper) == "BackingOff"
        assert keeper.health.error_class == "transient_network"
        assert server.sessions == []
        assert keeper.journal.last is not None
        assert keeper.journal.last.facts["finding"] == "silence"


@pytest.mark.asyncio
async def test_a_server_that_answers_is_not_given_up(
    clock: VirtualClock, server: MemoryServer
) -> None:
    async with keeper_of(server, lease=10) as keeper:
        await clock.advance(600)
        assert state_of(keeper) == "Streaming"
        assert server.calls["open"] == 1


# --- time-outs


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("method", "seconds", "finding"),
    [
        ("open", 15, "connect_timed_out"),
        ("inspect", 60, "acquire_timed_out"),
        ("start", 60, "acquire_timed_out"),
        ("lock", 35, "answer_overdue"),
    ],
)
async def test_what_is_never_answered_is_given_up_in_time(
    clock: VirtualClock, server: MemoryServer, method: str, seconds: float, finding: str
) -> None:
    server.leave_unanswered(method)
    async with keeper_of(server) as keeper:
        await clock.run_until(lambda: keeper.state == "BackingOff")
        assert clock.monotonic() <= seconds
        assert keeper.journal.last is not None
        assert keeper.journal.last.facts["finding"] == finding
        assert server.sessions == []
        await clock.run_until(lambda: keeper.state == "Streaming")


@pytest.mark.asyncio
async def test_the_hosts_timers_count(clock: VirtualClock, server: MemoryServer) -> None:
    server.leave_unanswered("inspect")
    async with keeper_of(server, timers={"acquire_timeout": 5.0}) as keeper:
        await clock.advance(5)
        assert keeper.state != "Acquiring"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("old", "new", "state", "timer", "seconds"),
    [
        ("connect_timeout: {after: 15", "connect_timeout: {after: 7", "Locking", None, 7.0),
        ("revive_after: {after: null", "revive_after: {after: 60", "Failed", "failed", 60.0),
    ],
)
async def test_the_timers_of_another_machine_file_count(
    clock: VirtualClock,
    server: MemoryServer,
    old: str,
    new: str,
    state: str,
    timer: str | None,
    seconds: float,
) -> None:
    text = shipped_path().read_text(encoding="utf-8")
    assert old in text
    server.leave_unanswered("open")
    if timer:
        fail_at_publication(server)
        server._scripts.clear()
    async with keeper_of(server, spec=parse(text.replace(old, new, 1))) as keeper:
        await clock.settle()
        assert state_of(keeper) == state
        opened = server.calls["open"]
        await clock.advance(seconds + 1)
        assert keeper.state != state or server.calls["open"] > opened


# --- late results


class _Stubborn(MemorySession):
    """Answers the first question for the slot although it was told not to wait for it."""

    refused: list[str]

    async def inspect(self) -> Any:
        if self.refused:
            return await super().inspect()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.refused.append("cancelled")
        return fresh_slot()


@pytest.mark.asyncio
async def test_a_late_result_is_dropped(clock: VirtualClock, server: MemoryServer) -> None:
    refused: list[str] = []

    def new_session() -> _Stubborn:
        session = _Stubborn(server, 2000 + server.calls["open"])
        session.refused = refused
        return session

    async with keeper_of(server, new_session=new_session) as keeper:
        await clock.advance(60)
        assert state_of(keeper) == "BackingOff"
        assert refused == ["cancelled"]
        assert keeper._engine.late == 1
        assert server.calls["start"] == 0
        await clock.run_until(lambda: keeper.state == "Streaming")


def test_health_of_a_keeper_that_was_never_used(server: MemoryServer) -> None:
    async def look() -> Health:
        return keeper_of(server).health

    health = asyncio.run(look())
    assert health.state == "Idle"
    assert (health.attempt, health.reason, health.holder) == (None, None, None)
