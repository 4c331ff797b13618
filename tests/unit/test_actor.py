from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from fsm.errors import Phase, SessionError
from fsm.machine.engine import Engine
from fsm.machine.loader import shipped
from fsm.runtime.actor import Actor
from fsm.runtime.journal import Journal
from fsm.runtime.verdict import ErrorAction
from fsm.testing import VirtualClock
from tests.support.keepers import Middle, settle


@dataclass(frozen=True)
class Said:
    """A verdict."""

    action: ErrorAction
    error_class: str = "transient_network"
    reason: str = "it was refused"
    remedy: str = "Wait."
    rule: str = "a_rule"


def classify(error: BaseException) -> Said:
    """Do as the error says."""
    return Said(error.action if isinstance(error, Refused) else "retry")


class Refused(Exception):
    def __init__(self, action: ErrorAction = "retry") -> None:
        super().__init__("refused")
        self.action: ErrorAction = action


async def for_ever() -> str | None:
    await asyncio.Event().wait()
    return None


class Performer:
    """Does what a test says, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ended: list[str] = []
        self.known: dict[str, Any] = {"slot": "orders"}
        self.script: dict[str, Callable[[], Awaitable[str | None]]] = {}
        self.broken: dict[str, Exception] = {}

    async def operation(self, action: str) -> str | None:
        self.asked.append(action)
        try:
            return await self.script.get(action, for_ever)()
        finally:
            self.ended.append(action)

    async def perform(self, action: str) -> None:
        self.asked.append(action)
        if action in self.broken:
            raise self.broken[action]

    def phase_error(self, trigger: str) -> SessionError:
        phase: Phase = "connect"
        return SessionError(trigger, phase=phase, facts={"finding": trigger})

    def facts(self) -> dict[str, Any]:
        return dict(self.known)

    def answers(self, action: str, answer: str) -> None:
        async def give() -> str:
            return answer

        self.script[action] = give

    def raises(self, action: str, error: Exception) -> None:
        async def give() -> str:
            raise error

        self.script[action] = give

    def answers_all(self) -> None:
        """Let the machine stream."""
        self.answers("open_session", "session_opened")
        self.answers("take_lock", "lock_granted")
        self.answers("inspect_slot", "slot_found")
        self.answers("start_stream", "stream_started")


class Scene:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.performer = Performer()
        self.journal = Journal()
        self.engine = Engine(shipped(), random=Middle(), lease=10.0)
        self.actor = Actor(self.engine, self.performer, classify, self.clock, self.journal)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.actor.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})

    @property
    def steps(self) -> list[tuple[str, str, str]]:
        return [(one.state, one.trigger, one.dest) for one in self.journal]


@pytest.mark.asyncio
async def test_an_answer_brings_the_next_action() -> None:
    scene = Scene()
    scene.performer.answers_all()
    async with scene.running():
        scene.actor.tell("start")
        await settle()
        assert scene.engine.state == "Streaming"
    assert scene.performer.asked == [
        "open_session",
        "take_lock",
        "inspect_slot",
        "start_stream",
        "receive",
    ]


@pytest.mark.asyncio
async def test_events_are_taken_in_their_order() -> None:
    scene = Scene()
    async with scene.running():
        for event in ("start", "stop", "start"):
            scene.actor.tell(event)
        await settle()
    assert scene.steps == [
        ("Idle", "start", "Locking"),
        ("Locking", "stop", "Idle"),
        ("Idle", "start", "Locking"),
    ]


@pytest.mark.asyncio
async def test_what_was_sent_is_settled_when_it_is_done() -> None:
    scene = Scene()
    async with scene.running():
        scene.actor.tell("start")
        scene.actor.tell("stop")
        await scene.actor.settled()
        assert scene.engine.state == "Idle"
        assert scene.performer.asked[-1] == "close_session"


@pytest.mark.asyncio
async def test_what_a_state_ignores_leaves_no_trace() -> None:
    scene = Scene()
    async with scene.running():
        scene.actor.tell("retry_now")
        await settle()
    assert scene.steps == []
    assert scene.performer.asked == []


@pytest.mark.asyncio
async def test_an_operation_ends_with_its_visit_before_the_session_is_closed() -> None:
    scene = Scene()
    order: list[str] = []

    async def slow_to_end() -> str | None:
        try:
            return await for_ever()
        finally:
            await asyncio.sleep(0)
            order.append("ended")

    scene.performer.script["open_session"] = slow_to_end
    original = scene.performer.perform

    async def perform(action: str) -> None:
        order.append(action)
        await original(action)

    scene.performer.perform = perform  # type: ignore[method-assign]  # to see the order
    async with scene.running():
        scene.actor.tell("start")
        await settle()
        scene.actor.tell("stop")
        await settle()
    assert order == ["ended", "close_session"]


@pytest.mark.asyncio
async def test_a_late_answer_is_dropped_and_counted() -> None:
    scene = Scene()

    async def stubborn() -> str:
        try:
            await for_ever()
        except asyncio.CancelledError:
            return "session_opened"
        return ""

    scene.performer.script["open_session"] = stubborn
    async with scene.running():
        scene.actor.tell("start")
        await settle()
        scene.actor.tell("stop")
        scene.performer.script["open_session"] = for_ever
        scene.actor.tell("start")
        await settle()
        assert scene.engine.state == "Locking"
        assert "session_open" not in scene.engine.facts
        assert scene.engine.late == 1


@pytest.mark.asyncio
async def test_a_late_error_is_dropped_too() -> None:
    scene = Scene()

    async def stubborn() -> str | None:
        try:
            return await for_ever()
        except asyncio.CancelledError:
            raise Refused("fail") from None

    scene.performer.script["open_session"] = stubborn
    async with scene.running():
        scene.actor.tell("start")
        await settle()
        scene.actor.tell("stop")
        await settle()
        assert scene.engine.state == "Idle"
        assert scene.engine.late == 1
        assert scene.actor.trouble is None


@pytest.mark.asyncio
async def test_an_error_becomes_the_event_that_the_classifier_says() -> None:
    scene = Scene()
    error = Refused("fail")
    scene.performer.raises("open_session", error)
    async with scene.running():
        scene.actor.tell("start")
        await settle()
        assert scene.engine.state == "Failed"
        assert scene.actor.trouble is not None
        assert scene.actor.trouble.error is error
    assert scene.journal.last is not None
    assert scene.journal.last.trigger == "error_fail"
    assert scene.journal.last.error_class == "transient_network"
    assert scene.journal.last.detail == "it was refused"


@pytest.mark.asyncio
async def test_an_error_to_be_ignored_sends_no_event() -> None:
    scene = Scene()
    scene.performer.raises("open_session", Refused("ignore"))
    async with scene.running():
        scene.actor.tell("start")
        await settle()
        assert scene.engine.state == "Locking"
    assert scene.steps == [("Idle", "start", "Locking")]


@pytest.mark.asyncio
async def test_an_error_from_elsewhere_counts_in_the_present_visit() -> None:
    scene = Scene()
    scene.performer.answers_all()
    async with scene.running():
        scene.actor.tell("start")
        await settle()
        scene.actor.report(Refused("retry"))
        await settle()
        assert scene.engine.state == "BackingOff"
        scene.actor.report(Refused("fail"))
        await settle()
        assert scene.engine.state == "BackingOff"


@pytest.mark.asyncio
async def test_the_record_says_what_is_known_of_the_error() -> None:
    scene = Scene()
    error = SessionError("no", phase="start", sqlstate="55006", facts={"active_pid": 712})
    scene.performer.raises("open_session", error)
    async with scene.running():
        scene.actor.tell("start")
        await settle()
    record = scene.journal.last
    assert record is not None
    assert (record.action, record.attempt, record.delay) == ("retry", 1, 0.25)
    assert record.facts == {
        "row": "locking_retries",
        "slot": "orders",
        "rule": "a_rule",
        "remedy": "Wait.",
        "phase": "start",
        "sqlstate": "55006",
        "active_pid": 712,
    }


@pytest.mark.asyncio
async def test_a_record_is_written_before_what_it_knows_is_let_go() -> None:
    scene = Scene()
    scene.performer.raises("open_session", Refused("retry"))

    async def forget(action: str) -> None:
        scene.performer.known = {}

    scene.performer.perform = forget  # type: ignore[method-assign]  # as closing a session does
    async with scene.running():
        scene.actor.tell("start")
        await settle()
    assert scene.journal.last is not None
    assert scene.journal.last.facts["slot"] == "orders"


@pytest.mark.asyncio
async def test_a_timer_drives_the_machine_and_its_error_says_which() -> None:
    scene = Scene()
    async with scene.running():
        scene.actor.tell("start")
        await scene.clock.advance(15)
        assert scene.engine.state == "BackingOff"
        trouble = scene.actor.trouble
        assert trouble is not None
        assert isinstance(trouble.error, SessionError)
        assert trouble.error.facts == {"finding": "connect_timed_out"}


@pytest.mark.asyncio
async def test_the_moment_of_entering_a_state_is_kept_while_it_stays() -> None:
    scene = Scene()
    scene.performer.answers("open_session", "session_opened")
    async with scene.running():
        await scene.clock.advance(3)
        scene.actor.tell("start")
        await settle()
        assert scene.actor.entered_at == 3
        await scene.clock.advance(12)
        assert scene.engine.state == "Locking"
        assert scene.actor.entered_at == 3


@pytest.mark.asyncio
async def test_trouble_is_forgotten_with_the_failures() -> None:
    scene = Scene()
    scene.performer.raises("open_session", Refused("fail"))
    async with scene.running():
        scene.actor.tell("start")
        await settle()
        assert scene.actor.trouble is not None
        scene.performer.script["open_session"] = for_ever
        scene.actor.tell("reset")
        await settle()
        assert scene.actor.trouble is None


@pytest.mark.asyncio
async def test_an_action_that_does_not_end_well_is_noted_and_passes() -> None:
    scene = Scene()
    scene.performer.broken["close_session"] = OSError(9, "bad descriptor")
    async with scene.running() as task:
        scene.actor.tell("start")
        scene.actor.tell("stop")
        await settle()
        assert scene.engine.state == "Idle"
        assert not task.done()
    assert scene.journal.last is not None
    assert "close_session did not end well" in scene.journal.last.detail
    assert scene.journal.last.state == scene.journal.last.dest == "Idle"


@pytest.mark.asyncio
async def test_quiet_rows_are_not_written_down() -> None:
    scene = Scene()
    scene.performer.answers_all()
    async with scene.running():
        scene.actor.tell("start")
        await settle()
        before = len(scene.journal)
        await scene.clock.advance(9)
        assert "send_status" in scene.performer.asked
        assert len(scene.journal) == before


@pytest.mark.asyncio
async def test_a_cancelled_actor_leaves_no_operation_and_no_timer() -> None:
    scene = Scene()
    async with scene.running() as task:
        scene.actor.tell("start")
        await settle()
        assert scene.clock.next_due() is not None
    assert task.cancelled()
    assert scene.performer.ended == ["open_session"]
    assert scene.clock.next_due() is None


@pytest.mark.asyncio
async def test_a_bug_ends_the_actor_with_its_error_and_its_operations_with_it() -> None:
    scene = Scene()

    def broken() -> dict[str, Any]:
        raise ZeroDivisionError("a bug")

    async with scene.running() as task:
        scene.actor.tell("start")
        await settle()
        scene.performer.facts = broken  # type: ignore[method-assign]  # that is the bug
        scene.actor.tell("stop")
        await asyncio.wait({task})
        error = task.exception()
    assert isinstance(error, ExceptionGroup)
    assert error.subgroup(ZeroDivisionError) is not None
    assert scene.performer.ended == ["open_session"]
    assert scene.clock.next_due() is None


@pytest.mark.asyncio
async def test_a_classifier_that_raises_is_a_bug_too() -> None:
    scene = Scene()

    def broken(_: Exception) -> Said:
        raise ZeroDivisionError("a bug")

    actor = Actor(scene.engine, scene.performer, broken, scene.clock, scene.journal)
    scene.performer.raises("open_session", Refused())
    task = asyncio.create_task(actor.run())
    actor.tell("start")
    await asyncio.wait({task})
    error = task.exception()
    assert isinstance(error, ExceptionGroup)
    assert error.subgroup(ZeroDivisionError) is not None
