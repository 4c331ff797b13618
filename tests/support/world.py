"""A world for a bare engine: virtual seconds, timers, and operations that answer as told.

It stands in for the actor, without an event loop, so that an hour passes in a moment.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

from fsm.machine.engine import Engine, Happening, Outcome, SetTimer, Step
from fsm.machine.governor import Governor
from fsm.machine.loader import parse, shipped, shipped_path
from fsm.machine.spec import Spec, problems

LEASE = 10.0


class Spinning(AssertionError):
    """More happened at one moment than any sane machine does."""


@cache
def _shipped_text() -> str:
    return shipped_path().read_text(encoding="utf-8")


def edited(*edits: tuple[str, str]) -> str:
    """Give the shipped machine's text with each ``(old, new)`` replaced where it stands first.

    An empty ``old`` appends.
    """
    text = _shipped_text()
    for old, new in edits:
        assert old in text, f"the shipped file does not say {old!r} any more"
        text = text.replace(old, new, 1) if old else f"{text}\n{new}\n"
    return text


def machine(*edits: tuple[str, str]) -> Spec:
    """Give the shipped machine with edits."""
    return parse(edited(*edits)) if edits else shipped()


def with_row(name: str, *edits: tuple[str, str], **fields: object) -> Spec:
    """Give the shipped machine (with edits) with other fields of one row; the loader allows it."""
    spec = machine(*edits)
    assert name in {row.id for row in spec.transitions}, f"there is no row '{name}' any more"
    rows = tuple(
        row.model_copy(update=fields) if row.id == name else row for row in spec.transitions
    )
    changed = Spec.model_validate({**dict(spec), "transitions": rows})
    assert list(problems(changed)) == []
    return changed


def dice(seed: int) -> Random:
    """Give a random source that a test can repeat."""
    return Random(seed)


def engine(spec: Spec | None = None, *, seed: int = 1, **options: Any) -> Engine:
    """Make an engine; each has its own random source and governor."""
    return Engine(spec or shipped(), random=dice(seed), lease=LEASE, **options)


def without_limit() -> Governor:
    """A governor that never intervenes, for tests about the file alone."""
    return Governor(rate=1e9, burst=1_000_000)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation comes to: an event after ``after`` seconds."""

    event: str
    error_class: str | None = None
    after: float = 0.0


Answers = Callable[[str], Answer | None]
"""From an action's name to its answer; None leaves it unanswered."""


@dataclass(order=True)
class _Due:
    at: float
    order: int
    happening: Happening = field(compare=False)
    repeat: SetTimer | None = field(default=None, compare=False)
    name: str | None = field(default=None, compare=False)
    cancelled: bool = field(default=False, compare=False)


class World:
    """Runs one engine.

    Attributes:
        steps: all that the engine decided, ignored and late events left out.
        asked: how often each action was asked for.
    """

    def __init__(self, machine: Engine, answers: Answers) -> None:
        self.engine = machine
        self.now = 0.0
        self.steps: list[Step] = []
        self.asked: Counter[str] = Counter()
        self._answers = answers
        self._due: list[_Due] = []
        self._order = 0
        self._timers: dict[str, _Due] = {}

    @property
    def interventions(self) -> int:
        return self.engine.governor.interventions

    def tell(self, event: str) -> None:
        """Send an event of the host, and let what follows at once happen."""
        self._take(Happening(event))
        self.advance(0.0)

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            Spinning: more than 1000 events at one moment.
        """
        end = self.now + seconds
        at_once = 0
        while self._due and self._due[0].at <= end:
            due = heapq.heappop(self._due)
            if due.cancelled:
                continue
            at_once = at_once + 1 if due.at == self.now else 0
            if at_once > 1000:
                raise Spinning(f"{due.happening} and what follows never ends at {self.now:g} s")
            self.now = max(self.now, due.at)
            if due.name is not None and due.repeat is None:
                self._timers.pop(due.name, None)
            if due.repeat is not None:
                self._set(due.repeat, due.happening.visit or 0)
            self._take(due.happening)
        self.now = end

    def _take(self, event: Happening) -> None:
        step = self.engine.handle(event, self.now)
        if step.outcome in (Outcome.LATE, Outcome.IGNORED):
            return
        self.steps.append(step)
        for name in step.cancel_timers:
            if (timer := self._timers.pop(name, None)) is not None:
                timer.cancelled = True
        for setting in step.set_timers:
            self._set(setting, step.visit)
        for action in step.actions:
            self._ask(action, step.visit)

    def _set(self, setting: SetTimer, visit: int) -> None:
        due = self._later(setting.length + setting.answer_within, Happening(setting.trigger, visit))
        due.name = setting.name
        due.repeat = setting if setting.repeat else None
        self._timers[setting.name] = due

    def _ask(self, action: str, visit: int) -> None:
        self.asked[action] += 1
        if self.engine.spec.actions[action].answers is None:
            return
        answer = self._answers(action)
        if answer is not None:
            self._later(answer.after, Happening(answer.event, visit, answer.error_class))

    def _later(self, seconds: float, happening: Happening) -> _Due:
        self._order += 1
        due = _Due(self.now + seconds, self._order, happening)
        heapq.heappush(self._due, due)
        return due


GOOD = {
    "open_session": Answer("session_opened"),
    "take_lock": Answer("lock_granted"),
    "inspect_slot": Answer("slot_found"),
    "start_stream": Answer("stream_started"),
    "check_work": Answer("work_shown"),
}
"""How operations end on a server where all is well."""


def well(**others: Answer | None) -> Answers:
    """Answer as a server where all is well, but for some operations."""
    answers: dict[str, Answer | None] = {**GOOD, **others}
    return answers.get
