"""Every row of states.yaml, walked by a real keeper over a server in memory."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest

from fsm import SlotFailed
from fsm.machine.engine import Engine, Happening, Step
from fsm.machine.loader import shipped
from fsm.testing import MemoryServer, MemorySession, VirtualClock
from fsm.testing.session import refusal
from tests.support.memory import Kept, fresh, held_by_another, kept
from tests.support.world import machine, with_row

REFUSED = refusal("connect", None, errno="ECONNREFUSED")
FULL = refusal("startup", "53300", "InitProcess")
NO_DATABASE = refusal("startup", "3D000", "InitPostgres")
NO_RULE = refusal("startup", "XX000", "a_function_of_no_rule")
HUNG_UP = refusal("start", None, eof=True)
CANCELLED = refusal("lock", "57014", "ProcessInterrupts", cancel_requested=True)

walks = pytest.mark.transition


@pytest.fixture(autouse=True)
def walked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Step]]:
    """What the engine decided; a test that is marked with a row must have walked it."""
    steps: list[Step] = []
    handle = Engine.handle

    def noting(self: Engine, event: Happening, now: float) -> Step:
        steps.append(handle(self, event, now))
        return steps[-1]

    monkeypatch.setattr(Engine, "handle", noting)
    yield steps
    callspec = getattr(request.node, "callspec", None)
    source = callspec.params.get("source") if callspec else None
    for mark in request.node.iter_markers("transition"):
        sources = {step.source for step in steps if step.row == mark.args[0]}
        assert sources, f"this test never walked row '{mark.args[0]}'"
        assert source is None or source in sources, f"it walked it from {sources}"


# Idle.


@walks("begin")
@pytest.mark.asyncio
async def test_a_keeper_begins_by_opening_a_session() -> None:
    server = fresh()
    server.leave_unanswered("open")
    async with kept(server) as one:
        assert (one.state, server.calls["open"]) == ("Locking", 1)
        assert one.record("begin").state == "Idle"


# Locking.


@walks("session_is_open")
@pytest.mark.asyncio
async def test_a_session_that_is_open_asks_for_the_lock() -> None:
    server = fresh()
    server.leave_unanswered("lock")
    async with kept(server) as one:
        assert (one.state, server.calls["lock"]) == ("Locking", 1)
        assert one.keeper.health.session_open


@walks("ask_for_lock_again")
@pytest.mark.asyncio
async def test_a_waiter_asks_again_after_each_slice_on_the_same_session() -> None:
    server = fresh()
    await held_by_another(server)
    async with kept(server) as one:
        await one.clock.advance(90)
        assert one.state == "Locking"
        asked = one.records("ask_for_lock_again")
        assert len(asked) >= 3
        assert all(22.5 <= b.mono - a.mono <= 30 for a, b in pairwise(asked))
        assert server.calls["open"] == 2
        assert one.keeper.health.error_class is None


@walks("still_waiting_for_lock")
@pytest.mark.asyncio
async def test_a_waiter_says_every_five_seconds_who_holds_the_lock() -> None:
    server = fresh()
    other = await held_by_another(server)
    async with kept(server) as one:
        await one.clock.advance(15)
        told = one.records("still_waiting_for_lock")
        assert [record.mono for record in told] == [5, 10, 15]
        assert told[0].facts["lock_holder"] == str(other.as_holder())


@walks("lock_is_ours")
@pytest.mark.asyncio
async def test_a_waiter_gets_the_lock_the_moment_its_holder_is_gone() -> None:
    server = fresh()
    other = await held_by_another(server)
    server.leave_unanswered("inspect")
    async with kept(server) as one:
        await one.clock.advance(7)
        other.close()
        await one.clock.settle()
        assert (one.state, one.clock.monotonic()) == ("Acquiring", 7)
        assert server.lock_owner is one.session
        assert one.keeper.health.lock_held
        assert server.calls["inspect"] == 1


@walks("connecting_took_long")
@pytest.mark.asyncio
async def test_a_server_that_never_answers_is_given_up_after_the_connect_timeout() -> None:
    server = fresh()
    server.leave_unanswered("open")
    async with kept(server, connect_timeout=4.0) as one:
        await one.clock.advance(3.9)
        assert one.state == "Locking"
        await one.clock.advance(0.1)
        assert one.state == "BackingOff"
        assert one.keeper.health.error_class == "transient_network"
        assert one.nothing_open
        await one.reach("Streaming")


@walks("lock_answer_overdue")
@pytest.mark.asyncio
async def test_a_slice_that_is_not_answered_costs_the_session() -> None:
    server = fresh()
    server.leave_unanswered("lock")
    async with kept(server) as one:
        await one.reach("BackingOff")
        assert 22.5 + 5 <= one.clock.monotonic() <= 30 + 5
        assert server.sessions == []
        assert one.keeper.health.error_class == "transient_network"


@walks("locking_retries")
@pytest.mark.asyncio
async def test_a_refused_connection_is_tried_again_after_a_delay() -> None:
    server = fresh()
    server.refuse("open", REFUSED)
    async with kept(server) as one:
        assert (one.state, server.calls["open"]) == ("BackingOff", 1)
        assert one.nothing_open
        record = one.record("locking_retries")
        assert (record.error_class, record.action) == ("transient_network", "retry")
        await one.reach("Streaming")
        assert record.delay is not None
        assert one.clock.monotonic() == record.delay >= 0.1


@walks("locking_retries_long")
@pytest.mark.asyncio
async def test_a_server_without_room_is_tried_again_later() -> None:
    server = fresh()
    server.refuse("open", FULL)
    async with kept(server) as one:
        record = one.record("locking_retries_long")
        assert (record.error_class, record.action) == ("resource_exhausted", "retry_long")
        assert (record.dest, one.nothing_open) == ("BackingOff", True)
        await one.reach("Streaming")


@walks("locking_waits")
@pytest.mark.asyncio
async def test_a_wait_for_the_lock_that_is_refused_gives_the_session_back() -> None:
    server = fresh()
    server.refuse("lock", refusal("lock", "55P03", "ProcessInterrupts"))
    async with kept(server) as one:
        record = one.record("locking_waits")
        assert (record.error_class, record.action) == ("contention", "wait")
        assert (one.state, one.nothing_open) == ("BackingOff", True)


@walks("locking_fails")
@pytest.mark.asyncio
async def test_a_database_that_does_not_exist_is_failed_at_once() -> None:
    server = fresh()
    server.refuse("open", NO_DATABASE)
    async with kept(server) as one:
        assert (one.state, server.calls["open"], one.nothing_open) == ("Failed", 1, True)
        with pytest.raises(SlotFailed) as failed:
            await one.keeper.wait_for("Streaming")
        assert failed.value.error_class == "configuration"
        await one.clock.advance(86_400)
        assert server.calls["open"] == 1


@walks("locking_is_told_to_stop")
@pytest.mark.asyncio
async def test_a_wait_for_the_lock_that_we_cancelled_ends_in_idle() -> None:
    server = fresh()
    server.refuse("lock", CANCELLED)
    async with kept(server) as one:
        assert (one.state, server.sessions) == ("Idle", [])


@walks("stop_locking")
@pytest.mark.asyncio
async def test_a_waiter_that_is_stopped_leaves_at_once_and_unqueues() -> None:
    server = fresh()
    other = await held_by_another(server)
    async with kept(server) as one:
        await one.keeper.stop()
        assert (one.state, one.clock.monotonic()) == ("Idle", 0)
        assert server.sessions == [other]
        other.close()
        assert server.lock_owner is None


# Acquiring.


@walks("slot_is_fit")
@pytest.mark.asyncio
async def test_a_slot_that_is_fit_is_started_after_it_was_looked_at() -> None:
    server = fresh()
    server.leave_unanswered("start")
    async with kept(server) as one:
        assert one.state == "Acquiring"
        assert (server.calls["check_publication"], server.calls["inspect"]) == (1, 1)
        assert server.calls["start"] == 1


@walks("still_acquiring")
@pytest.mark.asyncio
async def test_a_slot_that_takes_long_is_reported_every_five_seconds() -> None:
    server = fresh()
    server.leave_unanswered("inspect")
    async with kept(server) as one:
        await one.clock.advance(14)
        assert [record.mono for record in one.records("still_acquiring")] == [5, 10]
        assert one.state == "Acquiring"


@walks("stream_begins")
@pytest.mark.asyncio
async def test_a_stream_that_began_brings_changes_to_the_host() -> None:
    async with kept() as one:
        assert one.state == "Streaming"
        assert one.server.slot_owner is one.session
        one.server.commit({"id": "1"})
        consumer = asyncio.create_task(one.consume())
        await one.clock.settle()
        assert one.rows == [[{"id": "1"}]]
        await one.keeper.stop()
        await consumer


@walks("slot_is_taken")
@pytest.mark.asyncio
async def test_a_slot_that_a_rival_holds_leaves_us_session_and_lock() -> None:
    server = fresh()
    server.rival_takes_slot(pid=712)
    async with kept(server) as one:
        assert one.state == "BackingOff"
        assert server.lock_owner is one.session
        health = one.keeper.health
        assert (health.session_open, health.lock_held) == (True, True)
        assert (health.error_class, health.attempt) == ("contention", 1)
        assert "pid 712" in (health.holder or "")
        assert "pid 712" in one.record("slot_is_taken").facts["holder"]


@walks("acquiring_took_long")
@pytest.mark.asyncio
async def test_a_slot_that_never_answers_is_given_up_after_a_minute() -> None:
    server = fresh()
    server.leave_unanswered("inspect")
    async with kept(server) as one:
        await one.clock.advance(59)
        assert one.state == "Acquiring"
        await one.clock.advance(1)
        assert one.state == "BackingOff"
        assert one.record("acquiring_took_long").error_class == "transient_network"
        assert server.lock_owner is None


@walks("acquiring_retries")
@pytest.mark.parametrize("method", ["check_publication", "inspect", "start"])
@pytest.mark.asyncio
async def test_a_session_that_is_lost_while_acquiring_gives_the_lock_back(method: str) -> None:
    server = fresh()
    server.refuse(method, HUNG_UP)
    async with kept(server) as one:
        record = one.record("acquiring_retries")
        assert (record.error_class, record.dest) == ("transient_network", "BackingOff")
        assert (server.lock_owner, server.sessions) == (None, [])
        await one.reach("Streaming")
        assert server.calls["open"] == 2


@walks("acquiring_retries_long")
@pytest.mark.asyncio
async def test_a_server_without_a_free_slot_is_asked_again_later() -> None:
    server = fresh()
    server.slot_facts = None
    server.refuse("create", refusal("create_slot", "53400", "ReplicationSlotCreate"))
    async with kept(server, slot_policy="create") as one:
        record = one.record("acquiring_retries_long")
        assert (record.error_class, record.action) == ("resource_exhausted", "retry_long")
        assert server.lock_owner is None
        await one.reach("Streaming")


@walks("acquiring_fails")
@pytest.mark.asyncio
async def test_a_slot_that_is_missing_fails_and_is_named() -> None:
    server = fresh()
    server.slot_facts = None
    async with kept(server) as one:
        assert (one.state, server.sessions) == ("Failed", [])
        with pytest.raises(SlotFailed, match="slot 'orders' does not exist"):
            await anext(one.keeper)


@walks("acquiring_is_told_to_stop")
@pytest.mark.asyncio
async def test_a_start_that_we_cancelled_ends_in_idle() -> None:
    server = fresh()
    server.refuse("start", CANCELLED)
    async with kept(server) as one:
        assert (one.state, server.sessions, server.lock_owner) == ("Idle", [], None)


@walks("stop_acquiring")
@pytest.mark.asyncio
async def test_a_stop_while_acquiring_does_not_wait_for_the_server() -> None:
    server = fresh()
    server.leave_unanswered("start")
    async with kept(server) as one:
        await one.keeper.stop()
        assert (one.state, one.clock.monotonic()) == ("Idle", 0)
        assert (server.sessions, server.lock_owner) == ([], None)


# Streaming.


@walks("report_status")
@pytest.mark.asyncio
async def test_a_stream_confirms_its_position_ten_times_a_lease() -> None:
    async with kept(lease=20.0) as one:
        session = one.session
        await one.clock.advance(6)
        assert len(session.acknowledged) == 3
        assert set(session.acknowledged) == {one.keeper.health.flushed}
        assert one.records("report_status") == []


@walks("listen_for_silence")
@pytest.mark.asyncio
async def test_a_silent_server_is_asked_and_given_up_after_one_lease() -> None:
    async with kept(lease=8.0) as one:
        await one.clock.advance(60)
        assert one.state == "Streaming"
        one.server.mute = True
        heard = one.session.last_received
        await one.reach("BackingOff", limit=60)
        assert 8 <= one.clock.monotonic() - heard <= 8 + 2
        assert one.keeper.health.error_class == "transient_network"
        assert "no byte came" in (one.keeper.health.reason or "")


@walks("look_for_work")
@pytest.mark.asyncio
async def test_work_is_looked_for_until_the_server_has_answered_on_the_stream(
    walked: list[Step],
) -> None:
    server = fresh()
    server.mute = True
    async with kept(server, lease=200.0) as one:
        await one.clock.advance(29)
        assert [step.row for step in walked].count("look_for_work") == 2
        assert one.records("work_is_proven") == []
        server.keepalive()
        await one.clock.advance(1)
        assert len(one.records("work_is_proven")) == 1
        await one.clock.advance(60)
        assert [step.row for step in walked].count("look_for_work") == 3


@walks("work_is_proven")
@pytest.mark.asyncio
async def test_proven_work_forgets_the_failures_before_it() -> None:
    server = fresh()
    server.refuse("open", REFUSED, times=3)
    async with kept(server) as one:
        await one.reach("Streaming")
        assert one.keeper.health.attempt == 3
        await one.clock.advance(9)
        assert one.keeper.health.attempt == 3
        await one.clock.advance(1)
        health = one.keeper.health
        assert (health.attempt, health.reason) == (None, None)
        server.sever()
        await one.reach("BackingOff")
        assert one.keeper.health.attempt == 1


@walks("stream_retries")
@pytest.mark.asyncio
async def test_a_stream_that_breaks_comes_back_with_what_was_not_acknowledged() -> None:
    async with kept() as one:
        consumer = asyncio.create_task(one.consume())
        one.server.commit({"id": "1"})
        await one.clock.advance(1)
        one.server.sever()
        one.server.commit({"id": "2"})
        await one.clock.settle()
        assert (one.state, one.nothing_open) == ("BackingOff", True)
        assert one.record("stream_retries").error_class == "transient_network"
        await one.reach("Streaming")
        await one.clock.settle()
        assert one.rows == [[{"id": "1"}], [{"id": "2"}]]
        await one.keeper.stop()
        await consumer


@walks("stream_retries_long")
@pytest.mark.asyncio
async def test_a_stream_that_ends_on_a_full_disk_waits_longer() -> None:
    async with kept() as one:
        one.server.sever(refusal("streaming", "53100", "XLogWrite"))
        await one.clock.settle()
        record = one.record("stream_retries_long")
        assert (record.error_class, record.action) == ("resource_exhausted", "retry_long")
        assert (one.state, one.nothing_open) == ("BackingOff", True)


@walks("stream_waits")
@pytest.mark.asyncio
async def test_a_stream_that_loses_its_slot_to_another_closes_its_session() -> None:
    async with kept() as one:
        one.server.sever(refusal("streaming", "55006", "ReplicationSlotAcquire"))
        await one.clock.settle()
        record = one.record("stream_waits")
        assert (record.error_class, record.action) == ("contention", "wait")
        assert not one.keeper.health.lock_held
        assert (one.state, one.nothing_open) == ("BackingOff", True)


@walks("stream_fails")
@pytest.mark.asyncio
async def test_a_stream_whose_wal_is_damaged_fails_and_tells_the_host() -> None:
    async with kept() as one:
        consumer = asyncio.create_task(one.consume())
        one.server.sever(refusal("streaming", "XX001", "WALRead"))
        await one.clock.settle()
        assert (one.state, one.nothing_open) == ("Failed", True)
        with pytest.raises(SlotFailed) as failed:
            await consumer
        assert failed.value.error_class == "data_loss"
        assert failed.value.remedy


@walks("stream_is_told_to_stop")
@pytest.mark.asyncio
async def test_a_stream_that_we_cancelled_ends_in_order() -> None:
    async with kept() as one:
        session = one.session
        one.server.sever(CANCELLED)
        await one.clock.settle()
        assert (one.state, one.server.sessions) == ("Idle", [])
        assert session.ended_gracefully


@walks("stop_streaming")
@pytest.mark.asyncio
async def test_a_stop_confirms_what_was_acknowledged_and_ends_the_stream() -> None:
    async with kept() as one:
        session = one.session
        one.server.commit({"id": "1"})
        transaction = await anext(one.keeper)
        assert [change async for change in transaction]
        await one.keeper.ack(transaction)
        await one.keeper.stop()
        assert (one.state, session.ended_gracefully) == ("Idle", True)
        assert session.acknowledged[-1] == transaction.end_lsn
        assert one.server.slot_facts is not None
        assert one.server.slot_facts.confirmed_flush_lsn == one.server.wal_position
        assert one.server.slot_facts.active_pid is None


# BackingOff.


@walks("back_to_acquiring")
@pytest.mark.asyncio
async def test_a_keeper_that_kept_the_lock_goes_back_to_the_slot_without_locking() -> None:
    server = fresh()
    server.rival_takes_slot()
    async with kept(server) as one:
        await one.clock.advance(30)
        server.rival_leaves_slot()
        await one.reach("Streaming")
        assert (server.calls["open"], server.calls["lock"]) == (1, 1)
        assert server.calls["start"] == len(one.records("back_to_acquiring")) + 1


@walks("back_to_locking")
@pytest.mark.asyncio
async def test_a_keeper_without_the_lock_goes_back_to_the_beginning() -> None:
    server = fresh()
    server.refuse("inspect", HUNG_UP)
    async with kept(server) as one:
        await one.reach("Streaming")
        assert (server.calls["open"], server.calls["lock"]) == (2, 2)
        (record,) = one.records("back_to_locking")
        assert record.mono == one.record("acquiring_retries").delay


@walks("acquire_now")
@pytest.mark.asyncio
async def test_retry_now_tries_the_slot_at_once_on_the_kept_session() -> None:
    server = fresh()
    server.rival_takes_slot()
    async with kept(server) as one:
        server.rival_leaves_slot()
        one.keeper.retry_now()
        await one.clock.settle()
        assert (one.state, one.clock.monotonic()) == ("Streaming", 0)
        assert server.calls["open"] == 1


@walks("lock_now")
@pytest.mark.asyncio
async def test_retry_now_connects_at_once_where_nothing_is_open() -> None:
    server = fresh()
    server.refuse("open", FULL)
    async with kept(server) as one:
        one.keeper.retry_now()
        await one.clock.settle()
        assert (one.state, one.clock.monotonic()) == ("Streaming", 0)
        assert one.keeper.health.attempt == 1


@walks("reset_to_acquiring")
@pytest.mark.asyncio
async def test_reset_forgets_the_failures_and_tries_the_slot_at_once() -> None:
    server = fresh()
    server.rival_takes_slot()
    async with kept(server) as one:
        await one.clock.advance(30)
        await one.reach("BackingOff")
        assert (one.keeper.health.attempt or 0) > 2
        one.keeper.reset()
        await one.clock.settle()
        assert (one.state, one.keeper.health.attempt) == ("BackingOff", 1)
        assert server.calls["open"] == 1


@walks("reset_to_locking")
@pytest.mark.asyncio
async def test_reset_forgets_the_failures_and_connects_at_once() -> None:
    server = fresh()
    server.refuse("open", REFUSED, times=9)
    async with kept(server) as one:
        await one.clock.run_until(lambda: one.keeper.health.attempt == 3)
        now = one.clock.monotonic()
        one.keeper.reset()
        await one.clock.settle()
        assert (one.state, one.keeper.health.attempt) == ("BackingOff", 1)
        assert (one.clock.monotonic(), server.calls["open"]) == (now, 4)


@walks("ping_kept_session")
@pytest.mark.asyncio
async def test_a_kept_session_is_pinged_three_times_a_lease() -> None:
    server = fresh()
    server.rival_takes_slot()
    async with kept(server, lease=6.0) as one:
        await one.clock.run_until(lambda: (one.keeper.health.next_try or 0) > 12)
        before = server.calls["ping"]
        await one.clock.advance(11)
        assert server.calls["ping"] - before == 5
        assert (one.state, server.lock_owner) == ("BackingOff", one.session)
        assert one.records("ping_kept_session") == []


@walks("kept_session_lost")
@pytest.mark.asyncio
async def test_a_kept_session_that_does_not_answer_is_closed_and_the_way_on_is_locking() -> None:
    server = fresh()
    server.rival_takes_slot()
    async with kept(server) as one:
        await one.clock.run_until(lambda: (one.keeper.health.next_try or 0) > 5)
        server.refuse("ping", HUNG_UP)
        await one.clock.run_until(lambda: not one.keeper.health.session_open)
        assert (one.state, one.keeper.health.lock_held) == ("BackingOff", False)
        assert (server.sessions, server.lock_owner) == ([], None)
        server.rival_leaves_slot()
        await one.reach("Streaming")
        assert server.calls["open"] == 2


@walks("kept_session_lost")
@pytest.mark.asyncio
async def test_a_kept_session_that_is_silent_until_the_next_ping_is_closed() -> None:
    server = fresh()
    server.rival_takes_slot()
    async with kept(server, lease=3.0) as one:
        await one.clock.run_until(lambda: (one.keeper.health.next_try or 0) > 5)
        server.leave_unanswered("ping")
        await one.clock.advance(2.5)
        assert (one.state, one.keeper.health.session_open) == ("BackingOff", False)
        assert server.lock_owner is None


@walks("give_up")
@pytest.mark.asyncio
async def test_an_error_without_a_rule_is_given_up_after_ten_retries() -> None:
    server = fresh()
    server.refuse("open", NO_RULE, times=50)
    async with kept(server) as one:
        await one.reach("Failed")
        assert server.calls["open"] == 11
        with pytest.raises(SlotFailed) as failed:
            await anext(one.keeper)
        assert (failed.value.error_class, failed.value.sqlstate) == ("unknown", "XX000")


@walks("give_up")
@pytest.mark.asyncio
async def test_a_budget_that_is_spent_closes_a_kept_session() -> None:
    server = fresh()
    server.rival_takes_slot()
    spec = machine(("    max_elapsed: null\n\nstates:", "    max_elapsed: 20\n\nstates:"))
    async with kept(server, spec=spec) as one:
        await one.reach("Failed")
        assert (server.sessions, server.lock_owner) == ([], None)


@walks("stop_backing_off")
@pytest.mark.asyncio
async def test_a_stop_while_backing_off_closes_the_kept_session_at_once() -> None:
    server = fresh()
    server.rival_takes_slot()
    async with kept(server) as one:
        assert one.state == "BackingOff"
        await one.keeper.stop()
        assert (one.state, one.clock.monotonic()) == ("Idle", 0)
        assert (server.sessions, server.lock_owner) == ([], None)
        await one.clock.advance(3600)
        assert (one.state, server.calls["open"]) == ("Idle", 1)


# Failed.


@walks("reset_failed")
@pytest.mark.asyncio
async def test_reset_takes_a_failed_keeper_back_to_work() -> None:
    server = fresh()
    server.refuse("open", NO_DATABASE)
    async with kept(server) as one:
        assert one.state == "Failed"
        one.keeper.reset()
        await one.clock.settle()
        assert (one.state, one.keeper.health.error_class) == ("Streaming", None)
        server.commit({"id": "1"})
        assert (await anext(one.keeper)).commit_lsn


@walks("revived")
@pytest.mark.asyncio
async def test_a_failed_keeper_revives_by_itself_where_the_host_asked_for_it() -> None:
    server = fresh()
    server.refuse("open", NO_DATABASE)
    async with kept(server, revive_after=60.0) as one:
        consumer = asyncio.create_task(one.consume())
        await one.clock.advance(59)
        assert (one.state, consumer.done()) == ("Failed", False)
        await one.clock.advance(1)
        assert one.state == "Streaming"
        await one.keeper.stop()
        await consumer


@walks("stop_failed")
@pytest.mark.asyncio
async def test_a_failed_keeper_can_be_stopped_and_started_again() -> None:
    server = fresh()
    server.refuse("open", NO_DATABASE)
    async with kept(server) as one:
        assert one.state == "Failed"
        await one.keeper.stop()
        assert (one.state, [transaction async for transaction in one.keeper]) == ("Idle", [])
        one.keeper.start()
        await one.clock.settle()
        assert one.state == "Streaming"


# Anywhere.


class ImpatientServer(MemoryServer):
    """Ends every slice of waiting at once."""

    async def grant_lock(self, session: MemorySession, seconds: float) -> bool:
        return False


async def provoke_from_idle(one: Kept) -> None:
    for _ in range(11):
        await one.keeper.stop()
        one.keeper.start()
        await one.clock.settle()


async def provoke_from_backing_off(one: Kept) -> None:
    for _ in range(11):
        one.keeper.retry_now()
        await one.clock.settle()


async def provoke_from_failed(one: Kept) -> None:
    for _ in range(11):
        one.keeper.reset()
        await one.clock.settle()


def hot(source: str) -> tuple[MemoryServer, dict[str, object]]:
    """Prepare a server, and a wrong file where need be, that run the governor dry in a state."""
    server = fresh()
    match source:
        case "Locking":
            return ImpatientServer(VirtualClock()), {}
        case "Acquiring":
            server.rival_takes_slot()
            return server, {"spec": with_row("slot_is_taken", dest=None, do=("start_stream",))}
        case "Streaming":
            server.refuse("receive", refusal("streaming", "55006"), times=99)
            return server, {"spec": with_row("stream_waits", dest=None, do=("receive",))}
        case "BackingOff":
            server.rival_takes_slot()
        case "Failed":
            server.refuse("open", NO_DATABASE, times=99)
    return server, {}


PROVOKE = {
    "Idle": provoke_from_idle,
    "BackingOff": provoke_from_backing_off,
    "Failed": provoke_from_failed,
}


@walks("governor_intervenes")
@pytest.mark.parametrize(
    "source", ["Idle", "Locking", "Acquiring", "Streaming", "BackingOff", "Failed"]
)
@pytest.mark.asyncio
async def test_attempts_without_a_pause_are_stopped_for_a_minute(source: str) -> None:
    server, options = hot(source)
    async with kept(server, **options) as one:
        if source in PROVOKE:
            await PROVOKE[source](one)
        records = one.records("governor_intervenes")
        assert (records[0].state, records[0].dest) == (source, "BackingOff")
        assert (records[0].error_class, records[0].delay) == ("hot_loop", 60)
        assert (one.state, server.sessions, one.clock.monotonic()) == ("BackingOff", [], 0)
        before = server.calls.copy()
        await one.clock.advance(59.9)
        assert server.calls == before


# The rows and their tests.


def rows_with_tests() -> Counter[str]:
    """Give how many tests of this module walk each row."""
    return Counter(
        mark.args[0]
        for name, test in vars(sys.modules[__name__]).items()
        if name.startswith("test_")
        for mark in getattr(test, "pytestmark", [])
        if mark.name == "transition"
    )


def sources_with_tests(row: str) -> set[str]:
    """Give from which states the tests of a row walk it, where it names several."""
    return {
        source
        for name, test in vars(sys.modules[__name__]).items()
        if name.startswith("test_")
        for mark in getattr(test, "pytestmark", [])
        if mark.name == "parametrize" and mark.args[0] == "source"
        for source in mark.args[1]
        if any(m.name == "transition" and m.args[0] == row for m in test.pytestmark)
    }


def test_every_row_has_a_test_and_every_mark_names_a_row() -> None:
    rows = {row.id for row in shipped().transitions}
    tested = set(rows_with_tests())
    assert rows - tested == set(), "these rows have no test"
    assert tested - rows == set(), "these marks name no row"


def test_rows_of_several_sources_are_walked_from_each() -> None:
    several = {row.id: set(row.source) for row in shipped().transitions if len(row.source) > 1}
    assert {row: sources_with_tests(row) for row in several} == several
