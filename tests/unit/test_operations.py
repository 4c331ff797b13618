from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fsm.delivery import Delivery
from fsm.errors import SessionError
from fsm.operations import LINGER, Operations, SlotPolicy, finding_about
from fsm.testing import MemoryServer, MemorySession, VirtualClock
from fsm.testing.session import FIRST_LSN, fresh_slot, refusal
from tests.support.keepers import settle


class Scene:
    """Operations on a server in memory, called as the actor calls them."""

    def __init__(self, *, slot_policy: SlotPolicy = "require", lease: float = 10.0) -> None:
        self.clock = VirtualClock()
        self.server = MemoryServer(self.clock)
        self.reported: list[Exception] = []
        self.delivery = Delivery(1024 * 1024, self.reported.append)
        self.operations = Operations(
            self.server.session,
            self.delivery,
            self.clock,
            slot="orders",
            slot_policy=slot_policy,
            lease=lease,
            slice_length=lambda: 30.0,
        )

    @property
    def session(self) -> MemorySession:
        session = self.operations.session
        assert isinstance(session, MemorySession)
        return session

    async def run(self, *actions: str) -> str | None:
        answer = None
        for action in actions:
            answer = await self.operations.operation(action)
        return answer

    async def error_of(self, action: str) -> SessionError:
        with pytest.raises(SessionError) as raised:
            await self.operations.operation(action)
        return raised.value

    async def acquire(self) -> None:
        await self.run("open_session", "take_lock", "inspect_slot", "start_stream")

    def begin(self, action: str) -> asyncio.Task[str | None]:
        return asyncio.create_task(self.operations.operation(action))


async def ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})


# --- the session


@pytest.mark.asyncio
async def test_each_operation_gives_the_event_that_answers_it() -> None:
    scene = Scene()
    assert await scene.run("open_session") == "session_opened"
    assert await scene.run("take_lock") == "lock_granted"
    assert await scene.run("inspect_slot") == "slot_found"
    assert await scene.run("start_stream") == "stream_started"
    assert await scene.run("ping") is None


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "action", ["take_lock", "inspect_slot", "start_stream", "receive", "ping", "check_silence"]
)
async def test_without_a_session_an_operation_says_so(action: str) -> None:
    error = await Scene().error_of(action)
    assert error.facts["finding"] == "no_session"


@pytest.mark.asyncio
async def test_opening_closes_what_was_open() -> None:
    scene = Scene()
    await scene.acquire()
    first = scene.session
    await scene.run("open_session")
    assert scene.server.sessions == [scene.session]
    assert scene.session is not first
    assert scene.server.lock_owner is None


@pytest.mark.asyncio
async def test_closing_lets_go_of_lock_and_slot_and_may_be_repeated() -> None:
    scene = Scene()
    await scene.acquire()
    scene.operations.close_session()
    scene.operations.close_session()
    assert scene.server.sessions == []
    assert scene.server.lock_owner is None
    assert scene.server.slot_owner is None


@pytest.mark.asyncio
async def test_a_slice_that_ends_without_the_lock_says_so_and_names_its_holder() -> None:
    scene = Scene()
    other = scene.server.session()
    await other.open()
    await other.lock(1)
    await scene.run("open_session")
    waiting = scene.begin("take_lock")
    await scene.clock.advance(29.9)
    assert not waiting.done()
    await scene.clock.advance(0.2)
    assert await waiting == "slice_ended"
    assert scene.operations.facts()["lock_holder"] == f"pid {other.pid}, app 'slotkeeper'"


# --- the history of the server


@pytest.mark.asyncio
async def test_another_server_than_the_one_followed_is_a_divergence() -> None:
    scene = Scene()
    await scene.acquire()
    scene.operations.close_session()
    scene.server.system_id = "7000000000000000002"
    error = await scene.error_of("open_session")
    assert error.facts["finding"] == "divergence"
    assert "7000000000000000002" in str(error)


@pytest.mark.asyncio
async def test_a_server_that_lacks_what_was_confirmed_is_a_divergence() -> None:
    scene = Scene()
    await scene.acquire()
    scene.delivery.progress.advance_idle(scene.server.wal_position + 1)
    error = await scene.error_of("open_session")
    assert error.facts["finding"] == "divergence"


@pytest.mark.asyncio
async def test_the_same_server_with_all_that_was_confirmed_is_followed_on() -> None:
    scene = Scene()
    await scene.acquire()
    scene.delivery.progress.advance_idle(scene.server.wal_position)
    assert await scene.run("open_session") == "session_opened"


# --- the slot

UNFIT: dict[str, dict[str, Any]] = {
    "slot_is_physical": {"slot_type": "physical", "plugin": None, "database": None},
    "slot_of_other_database": {"same_database": False, "database": "other"},
    "slot_of_other_plugin": {"plugin": "wal2json"},
    "slot_is_temporary": {"temporary": True},
    "slot_lost": {"wal_status": "lost"},
    "slot_synced_on_standby": {"synced": True},
}


@pytest.mark.parametrize("finding", UNFIT)
def test_what_makes_a_slot_unfit_is_found(finding: str) -> None:
    assert finding_about(replace(fresh_slot(), **UNFIT[finding])) == finding


@pytest.mark.parametrize("reason", ["rows_removed", "wal_level_insufficient", "idle_timeout"])
def test_an_invalidated_slot_is_lost_whatever_its_wal_status(reason: str) -> None:
    slot = replace(fresh_slot(), invalidation_reason=reason, wal_status="reserved")
    assert finding_about(slot) == "slot_lost"


@pytest.mark.parametrize("wal_status", ["reserved", "extended", "unreserved", None])
def test_a_slot_that_can_still_be_streamed_is_fit(wal_status: str | None) -> None:
    assert finding_about(replace(fresh_slot(), wal_status=wal_status)) is None


@pytest.mark.asyncio
@pytest.mark.parametrize("finding", UNFIT)
async def test_an_unfit_slot_is_an_error_that_names_it(finding: str) -> None:
    scene = Scene()
    scene.server.slot_facts = replace(fresh_slot(), **UNFIT[finding])
    await scene.run("open_session", "take_lock")
    error = await scene.error_of("inspect_slot")
    assert (error.phase, error.facts["finding"]) == ("start", finding)
    assert error.facts["slot"] == "orders"
    assert "orders" in str(error)


@pytest.mark.asyncio
async def test_a_missing_slot_is_not_created_where_it_is_required() -> None:
    scene = Scene(slot_policy="require")
    scene.server.slot_facts = None
    await scene.run("open_session", "take_lock")
    error = await scene.error_of("inspect_slot")
    assert error.facts == {"finding": "slot_missing", "slot": "orders"}
    assert scene.server.calls["create"] == 0


@pytest.mark.asyncio
async def test_a_missing_slot_is_created_where_that_is_allowed() -> None:
    scene = Scene(slot_policy="create")
    scene.server.slot_facts = None
    await scene.run("open_session", "take_lock")
    assert await scene.run("inspect_slot") == "slot_found"
    assert scene.server.slot_facts == fresh_slot()


@pytest.mark.asyncio
@pytest.mark.parametrize("slot_policy", ["require", "create"])
async def test_a_slot_that_was_streamed_and_is_gone_is_never_created_anew(
    slot_policy: SlotPolicy,
) -> None:
    scene = Scene(slot_policy=slot_policy)
    await scene.acquire()
    scene.server.slot_facts = None
    await scene.run("open_session", "take_lock")
    error = await scene.error_of("inspect_slot")
    assert error.facts["finding"] == "slot_missing"
    assert error.facts["previously_streamed"] is True
    assert scene.server.calls["create"] == 0


@pytest.mark.asyncio
async def test_a_slot_that_is_there_is_not_created() -> None:
    scene = Scene(slot_policy="create")
    await scene.acquire()
    assert scene.server.calls["create"] == 0


@pytest.mark.asyncio
async def test_the_publication_is_looked_at_before_the_slot() -> None:
    scene = Scene(slot_policy="create")
    scene.server.slot_facts = None
    scene.server.publication_exists = False
    await scene.run("open_session", "take_lock")
    error = await scene.error_of("inspect_slot")
    assert error.facts["finding"] == "publication_missing"
    assert scene.server.slot_facts is None


# --- START_REPLICATION


@pytest.mark.asyncio
async def test_a_rival_is_named_and_met_once() -> None:
    scene = Scene()
    await scene.run("open_session", "take_lock", "inspect_slot")
    scene.server.rival_takes_slot(pid=712)
    error = await scene.error_of("start_stream")
    assert error.sqlstate == "55006"
    assert error.facts["active_pid"] == 712
    assert error.facts["holder"] == "pid 712, app 'etl'"
    assert scene.operations.facts()["holder"] == "pid 712, app 'etl'"
    assert scene.server.calls["start"] == 1
    assert scene.clock.monotonic() == 0


@pytest.mark.asyncio
async def test_our_own_lingering_backend_is_waited_out() -> None:
    scene = Scene()
    await scene.acquire()
    pid = scene.session.pid
    scene.operations.close_session()
    await scene.run("open_session", "take_lock", "inspect_slot")
    scene.server.rival_takes_slot(pid)
    starting = scene.begin("start_stream")
    await scene.clock.advance(0.1)
    assert not starting.done()
    scene.server.rival_leaves_slot()
    await scene.clock.advance(LINGER - 0.1)
    assert await starting == "stream_started"
    assert scene.operations.holder is None


@pytest.mark.asyncio
async def test_the_backend_that_held_the_lock_before_us_is_waited_out() -> None:
    scene = Scene()
    other = scene.server.session()
    await other.open()
    await other.lock(1)
    await scene.run("open_session")
    waiting = scene.begin("take_lock")
    await settle()
    other.close()
    assert await waiting == "lock_granted"
    await scene.run("inspect_slot")
    scene.server.rival_takes_slot(other.pid)
    starting = scene.begin("start_stream")
    await scene.clock.advance(0.02)
    scene.server.rival_leaves_slot()
    await scene.clock.advance(LINGER)
    assert await starting == "stream_started"


@pytest.mark.asyncio
async def test_waiting_out_what_is_left_of_us_has_an_end_and_few_tries() -> None:
    scene = Scene()
    await scene.acquire()
    pid = scene.session.pid
    scene.operations.close_session()
    await scene.run("open_session", "take_lock", "inspect_slot")
    scene.server.rival_takes_slot(pid)
    before = scene.server.calls["start"]
    starting = scene.begin("start_stream")
    await scene.clock.advance(LINGER)
    with pytest.raises(SessionError) as raised:
        await starting
    assert raised.value.sqlstate == "55006"
    assert 3 <= scene.server.calls["start"] - before <= 8


@pytest.mark.asyncio
async def test_a_slot_that_is_free_again_when_it_is_looked_at_is_tried_again() -> None:
    scene = Scene()
    await scene.run("open_session", "take_lock", "inspect_slot")
    scene.server.refuse("start", refusal("start", "55006"))
    starting = scene.begin("start_stream")
    await scene.clock.advance(LINGER)
    assert await starting == "stream_started"


@pytest.mark.asyncio
async def test_another_refusal_is_not_tried_again() -> None:
    scene = Scene()
    await scene.run("open_session", "take_lock", "inspect_slot")
    scene.server.refuse("start", refusal("start", "42704"))
    error = await scene.error_of("start_stream")
    assert error.sqlstate == "42704"
    assert scene.server.calls["start"] == 1


@pytest.mark.asyncio
async def test_the_slots_own_position_is_where_the_first_stream_begins() -> None:
    scene = Scene()
    await scene.acquire()
    assert scene.delivery.progress.flushed == FIRST_LSN


async def _hold_a_transaction(scene: Scene) -> Any:
    """Stream one transaction and read it; the session is lost before it is acknowledged."""
    await scene.acquire()
    receiving = scene.begin("receive")
    scene.server.commit({"id": "1"})
    transaction = await scene.delivery.next_transaction()
    assert transaction is not None
    async for _ in transaction:
        pass
    await ended(receiving)
    scene.operations.close_session()
    return transaction


@pytest.mark.asyncio
async def test_a_slot_moved_by_another_ends_what_the_host_has_of_it() -> None:
    scene = Scene()
    transaction = await _hold_a_transaction(scene)
    scene.server.confirm(scene.server.wal_position)
    await scene.acquire()
    assert transaction.lost


@pytest.mark.asyncio
async def test_a_slot_moved_by_a_rival_is_noticed_although_it_held_the_slot_at_first() -> None:
    scene = Scene()
    transaction = await _hold_a_transaction(scene)
    scene.server.confirm(scene.server.wal_position)
    await scene.run("open_session", "take_lock", "inspect_slot")
    scene.server.rival_takes_slot()
    await scene.error_of("start_stream")
    scene.server.rival_leaves_slot()
    await scene.run("inspect_slot", "start_stream")
    assert transaction.lost


@pytest.mark.asyncio
async def test_a_slot_moved_while_its_last_holder_was_waited_out_is_noticed() -> None:
    scene = Scene()
    transaction = await _hold_a_transaction(scene)
    pid = 1001
    await scene.run("open_session", "take_lock", "inspect_slot")
    scene.server.rival_takes_slot(pid)
    starting = scene.begin("start_stream")
    await settle()
    scene.server.confirm(scene.server.wal_position)
    scene.server.rival_leaves_slot()
    await scene.clock.advance(LINGER)
    assert await starting == "stream_started"
    assert transaction.lost


@pytest.mark.asyncio
async def test_a_slot_that_nobody_moved_leaves_the_host_what_it_has() -> None:
    scene = Scene()
    transaction = await _hold_a_transaction(scene)
    await scene.acquire()
    assert not transaction.lost


# --- pings, silence, work


@pytest.mark.asyncio
async def test_a_ping_that_fails_says_that_the_session_is_lost() -> None:
    scene = Scene()
    await scene.run("open_session", "take_lock")
    scene.server.refuse("ping", refusal("lock", None, eof=True))
    assert await scene.run("ping") == "session_lost"


@pytest.mark.asyncio
async def test_a_second_ping_while_the_first_is_unanswered_says_so_too() -> None:
    scene = Scene()
    await scene.run("open_session", "take_lock")
    scene.server.leave_unanswered("ping")
    first = scene.begin("ping")
    await settle()
    assert await scene.run("ping") == "session_lost"
    await ended(first)
    assert await scene.run("ping") is None


@pytest.mark.asyncio
async def test_work_is_shown_when_the_server_was_heard_after_the_stream_began() -> None:
    scene = Scene()
    await scene.acquire()
    receiving = scene.begin("receive")
    await scene.clock.advance(5)
    assert await scene.run("check_work") is None
    scene.server.keepalive()
    assert await scene.run("check_work") == "work_shown"
    await ended(receiving)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("silent_for", "asked", "given_up"), [(4.9, 0, False), (5.0, 1, False), (10.0, 0, True)]
)
async def test_silence_is_answered_by_asking_at_half_the_lease_and_giving_up_after_it(
    *, silent_for: float, asked: int, given_up: bool
) -> None:
    scene = Scene(lease=10)
    scene.server.mute = True
    await scene.acquire()
    receiving = scene.begin("receive")
    await scene.clock.advance(silent_for)
    if given_up:
        error = await scene.error_of("check_silence")
        assert error.facts["finding"] == "silence"
        assert error.facts["seconds"] == silent_for
    else:
        assert await scene.run("check_silence") is None
    assert scene.server.calls["acknowledge"] == asked
    await ended(receiving)


@pytest.mark.asyncio
async def test_silence_is_not_held_against_a_server_that_is_not_being_read() -> None:
    scene = Scene()
    await scene.acquire()
    receiving = scene.begin("receive")
    await scene.clock.advance(60)
    scene.session.reading = False
    assert await scene.run("check_silence") is None
    assert scene.server.calls["acknowledge"] == 0
    await ended(receiving)


# --- what is done at once


@pytest.mark.asyncio
async def test_a_status_tells_what_is_flushed_while_a_stream_is_open() -> None:
    scene = Scene()
    scene.operations.send_status()
    await scene.run("open_session", "take_lock", "inspect_slot")
    scene.operations.send_status()
    assert scene.server.calls["acknowledge"] == 0
    await scene.run("start_stream")
    scene.delivery.progress.advance_idle(FIRST_LSN + 5)
    await scene.operations.perform("send_status")
    assert scene.session.acknowledged == [FIRST_LSN + 5]


@pytest.mark.asyncio
async def test_no_status_is_sent_on_a_session_that_does_not_stream_yet() -> None:
    scene = Scene()
    await scene.acquire()
    await scene.run("open_session")
    scene.operations.send_status()
    assert scene.session.acknowledged == []


@pytest.mark.asyncio
async def test_the_end_of_a_stream_confirms_what_is_flushed() -> None:
    scene = Scene()
    await scene.acquire()
    session = scene.session
    await scene.operations.perform("end_stream")
    await scene.operations.perform("close_session")
    assert session.acknowledged == [FIRST_LSN]
    assert session.ended_gracefully
    assert scene.server.sessions == []


@pytest.mark.parametrize(
    ("trigger", "phase"),
    [
        ("connect_timed_out", "connect"),
        ("answer_overdue", "lock"),
        ("acquire_timed_out", "start"),
        ("hot_loop", "connect"),
    ],
)
def test_a_timers_error_says_what_took_long(trigger: str, phase: str) -> None:
    error = Scene().operations.phase_error(trigger)
    assert (error.phase, error.facts["finding"]) == (phase, trigger)
    assert str(error) == trigger.replace("_", " ")


@pytest.mark.asyncio
async def test_the_facts_name_slot_position_and_backend() -> None:
    scene = Scene()
    assert scene.operations.facts() == {"slot": "orders", "flushed": 0}
    await scene.acquire()
    assert scene.operations.facts() == {
        "slot": "orders",
        "flushed": FIRST_LSN,
        "backend_pid": scene.session.pid,
    }
