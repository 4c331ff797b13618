"""The actor: one queue, one machine, one operation at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from fsm.errors import SessionError
from fsm.machine.engine import Engine, Happening, Outcome, Step
from fsm.runtime.clock import Clock
from fsm.runtime.journal import Journal, Record
from fsm.runtime.timers import Timers
from fsm.runtime.verdict import Classify, Trouble


class Performer(Protocol):
    """Carries out what the engine asks for."""

    def operation(self, action: str) -> Coroutine[Any, Any, str | None]:
        """Give the operation of an action: it returns the event that answers it, or raises."""

    async def perform(self, action: str) -> None:
        """Carry out an action that is done at once.

        A SessionError becomes an event; anything else is written down, and passes.
        """

    def phase_error(self, trigger: str) -> SessionError:
        """Give the error that a timer's trigger stands for."""

    def facts(self) -> dict[str, Any]:
        """Give what is known now, for the journal."""


@dataclass(frozen=True, slots=True)
class _Envelope:
    event: Happening
    trouble: Trouble | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Actor:
    """Runs one engine: takes events in order, asks the engine, does what it says.

    Args:
        engine: decides.
        performer: acts.
        classify: says what an error means.
        clock: time.
        journal: where all is written down.
    """

    def __init__(
        self,
        engine: Engine,
        performer: Performer,
        classify: Classify,
        clock: Clock,
        journal: Journal,
    ) -> None:
        self.engine = engine
        self.journal = journal
        self.timers = Timers(clock, self._timer_fired)
        self.trouble: Trouble | None = None
        """The error that the machine deals with; None once work is proven."""
        self.entered_at = 0.0
        self._performer = performer
        self._classify = classify
        self._clock = clock
        self._queue: asyncio.Queue[_Envelope] = asyncio.Queue()
        self._operations: set[asyncio.Task[None]] = set()

    def tell(self, name: str) -> None:
        """Send an event of the host."""
        self._queue.put_nowait(_Envelope(Happening(name)))

    def report(self, error: Exception) -> None:
        """Send an error that was met outside of any operation, in the present visit."""
        self._send_error(error, self.engine.visit)

    async def settled(self) -> None:
        """Wait until all that was sent so far is taken, and what is done at once for it is done."""
        await self._queue.join()

    def end(self) -> None:
        """Note that it was stopped, where it runs no more; what that asks for is the caller's."""
        step = self.engine.handle(Happening("stop"), self._clock.monotonic())
        if step.outcome is Outcome.MOVED:
            self.entered_at = self._clock.monotonic()
            self._write(step)

    async def run(self) -> None:
        """Run until cancelled. What runs on its behalf ends with it."""
        self.entered_at = self._clock.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._take(await self._queue.get(), group)
                    self._queue.task_done()
        finally:
            self.timers.cancel_all()

    async def _take(self, envelope: _Envelope, group: asyncio.TaskGroup) -> None:
        step = self.engine.handle(envelope.event, self._clock.monotonic())
        if step.outcome in (Outcome.LATE, Outcome.IGNORED):
            return
        if step.outcome is Outcome.MOVED:
            self.entered_at = self._clock.monotonic()
            await self._end_operations()
        self._remember_trouble(step, envelope)
        for name in step.cancel_timers:
            self.timers.cancel(name)
        for setting in step.set_timers:
            self.timers.set(setting, step.visit)
        if not step.quiet:
            self._write(step)
        for action in step.actions:
            await self._begin(action, step, group)

    async def _end_operations(self) -> None:
        """Cancel what the visit that ends had asked for, and see it ended."""
        tasks = tuple(self._operations)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _remember_trouble(self, step: Step, envelope: _Envelope) -> None:
        if self.engine.failure is None:
            self.trouble = None
        if step.failure is None:
            return
        if envelope.trouble is not None and not step.governed:
            self.trouble = envelope.trouble
            return
        error = self._performer.phase_error(step.trigger)
        self.trouble = Trouble(error, self._classify(error))

    def _write(self, step: Step) -> Record:
        failure = step.failure
        trouble = self.trouble if failure is not None else None
        return self._record(
            visit=step.visit,
            state=step.source,
            trigger=step.trigger,
            dest=step.dest,
            error_class=failure.error_class if failure else None,
            action=failure.policy.removeprefix("error_") if failure else None,
            attempt=failure.failures if failure else None,
            delay=failure.delay if failure else None,
            facts={"row": step.row, **self._performer.facts(), **_facts_of(trouble)},
            detail=trouble.verdict.reason if trouble else "",
        )

    async def _begin(self, action: str, step: Step, group: asyncio.TaskGroup) -> None:
        if self.engine.spec.actions[action].answers is None:
            await self._perform(action, step)
            return
        task = group.create_task(self._operate(action, step.visit), name=f"slotkeeper {action}")
        self._operations.add(task)
        task.add_done_callback(self._operations.discard)

    async def _perform(self, action: str, step: Step) -> None:
        try:
            await self._performer.perform(action)
        except SessionError as error:
            self._send_error(error, step.visit)
        except Exception as error:  # noqa: BLE001  (an action that only lets go cannot be let fail)
            self._note(step, f"{action} did not end well: {error}")

    def _record(self, **fields: Any) -> Record:
        now, wall = self._clock.monotonic(), self._clock.wall()
        return self.journal.write(wall=wall, mono=now, **fields)

    def _note(self, step: Step, detail: str) -> None:
        self._record(
            visit=step.visit,
            state=step.dest,
            trigger=step.trigger,
            dest=step.dest,
            detail=detail,
        )

    async def _operate(self, action: str, visit: int) -> None:
        try:
            answer = await self._performer.operation(action)
        except Exception as error:  # noqa: BLE001  (every error becomes an event; the classifier says which)
            self._send_error(error, visit)
            return
        if answer is not None:
            self._queue.put_nowait(_Envelope(Happening(answer, visit)))

    def _send_error(self, error: Exception, visit: int) -> None:
        verdict = self._classify(error)
        if verdict.action == "ignore":
            return
        event = Happening(f"error_{verdict.action}", visit, verdict.error_class)
        self._queue.put_nowait(_Envelope(event, Trouble(error, verdict)))

    def _timer_fired(self, trigger: str, visit: int) -> None:
        self._queue.put_nowait(_Envelope(Happening(trigger, visit)))


def _facts_of(trouble: Trouble | None) -> dict[str, Any]:
    if trouble is None:
        return {}
    facts: dict[str, Any] = {"rule": trouble.verdict.rule, "remedy": trouble.verdict.remedy}
    if isinstance(trouble.error, SessionError):
        facts |= {
            "phase": trouble.error.phase,
            "sqlstate": trouble.error.sqlstate,
            **trouble.error.facts,
        }
    return facts
