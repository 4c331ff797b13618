"""The engine: (state, event) -> the next state, the actions to do, the timers to set.

It performs nothing and knows no clock; the time is an argument. ``transitions.Machine`` is the
decision table behind it. Only the synchronous core of that library is used: its asyncio machine
swallows cancellation in 0.9.3, and its timeouts keep one delay per state for all models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random
from typing import Any, Final, cast

from transitions import EventData, Machine
from transitions import Transition as TableRow

from fsm.machine.governor import Governor
from fsm.machine.spec import INITIAL, Condition, Row, Spec, State, Timer

GOVERNED: Final = ("Locking", "Acquiring")
"""The states in which attempts are made, whatever the file says."""
LETTING_GO: Final = ("close_session",)
"""What is done when the governor cannot count on the file."""
SHORTEST: Final = 0.1
"""Seconds: no timer of a state is shorter, whatever the file or the host says."""


class Outcome(Enum):
    """What became of an event."""

    MOVED = "moved"
    """A state was entered: a new visit."""
    STAYED = "stayed"
    """A row fired that stays in the state."""
    IGNORED = "ignored"
    """The state takes no notice of this event."""
    LATE = "late"
    """It belongs to an earlier visit, and was dropped."""


@dataclass(frozen=True, slots=True)
class Happening:
    """An event as it reaches the engine.

    ``visit`` is None for what belongs to no visit: the host's events.
    ``error_class`` labels the classifier's events.
    """

    name: str
    visit: int | None = None
    error_class: str | None = None


@dataclass(frozen=True, slots=True)
class SetTimer:
    """A timer to set: after ``length`` + ``answer_within`` seconds it sends ``trigger``."""

    name: str
    trigger: str
    length: float
    answer_within: float = 0.0
    repeat: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the machine is not streaming."""

    policy: str
    """The classifier's action."""
    error_class: str
    failures: int
    """How many of this kind there were since work was last proven, this one included."""
    delay: float | None
    """Seconds until the next try; None where there is none."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the engine decided about one event."""

    outcome: Outcome
    source: State
    trigger: str
    dest: State
    visit: int
    row: str | None = None
    """The id of the row that fired; None where none did."""
    actions: tuple[str, ...] = ()
    set_timers: tuple[SetTimer, ...] = ()
    cancel_timers: tuple[str, ...] = ()
    failure: Failure | None = None
    """Where this step counted one."""
    quiet: bool = False
    governed: bool = False
    """The governor intervened: this step is its own, not the file's."""


@dataclass(slots=True)
class _Streak:
    """The failures of one kind since work was last proven."""

    failures: int = 0
    elapsed: float = 0.0
    last_delay: float | None = None


@dataclass(frozen=True, slots=True)
class _Armed:
    """A timer that was set in this visit."""

    at: float
    length: float


class _Position:
    """The model that the table moves: one small private object per engine."""

    state: State
    trigger: Callable[..., bool]

    def __init__(self) -> None:
        self.state = INITIAL
        self.facts: set[str] = set()
        self.fired: TableRow | None = None


def _holds(condition: Condition) -> Callable[[EventData], bool]:
    def holds(event: EventData) -> bool:
        return condition.met_by(cast("_Position", event.model).facts)

    return holds


def _note_fired_row(event: EventData) -> None:
    """Note which row fired. It acts upon nothing; the library offers no other way to learn it."""
    cast("_Position", event.model).fired = event.transition if event.result else None


@dataclass(slots=True)
class Table:
    """The decision table of one Spec, shared by all its engines."""

    machine: Machine
    rows: dict[int, Row] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Spec) -> Table:
        """Build the table of a Spec."""
        machine = Machine(
            model=None,
            states=list(spec.states),
            initial=INITIAL,
            send_event=True,
            auto_transitions=False,
            finalize_event=_note_fired_row,
        )
        table = cls(machine)
        for row in spec.transitions:
            for source in row.source:
                table.add(row, source)
        return table

    def add(self, row: Row, source: State) -> None:
        """Add a row for one of its sources."""
        conditions = [_holds(row.when)] if row.when else None
        self.machine.add_transition(
            row.trigger, source, row.dest, conditions=cast("Any", conditions)
        )
        added = self.machine.events[row.trigger].transitions[source][-1]
        self.rows[id(added)] = row


class Engine:
    """One machine at its place in a Spec.

    Args:
        spec: the machine.
        random: where jitter comes from.
        lease: seconds; timers may be parts of it.
        governor: the limit on attempts.
        lengths: seconds by name of timer, instead of what the file says.
        table: the decision table, to share one among many engines of a Spec.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        random: Random,
        lease: float,
        governor: Governor | None = None,
        lengths: Mapping[str, float | None] | None = None,
        table: Table | None = None,
    ) -> None:
        self.spec = spec
        self.governor = governor or Governor()
        self.visit = 0
        self.late = 0
        self.failure: Failure | None = None
        self._random = random
        self._lease = lease
        self._lengths = lengths or {}
        self._table = table or Table.of(spec)
        self._position = _Position()
        self._on_table = False
        self._armed: dict[str, _Armed] = {}
        self._reported: set[str] = set()
        self._streaks: dict[tuple[str, str], _Streak] = {}
        self._charged_to: _Streak | None = None
        self._charged_at = 0.0

    @property
    def state(self) -> State:
        """The state it is in."""
        return self._position.state

    @property
    def facts(self) -> frozenset[str]:
        """The facts that hold."""
        return frozenset(self._position.facts)

    def forget(self) -> None:
        """Take this engine off the shared table, onto which its first event put it."""
        if self._on_table:
            self._table.machine.remove_model(self._position)
            self._on_table = False

    def handle(self, event: Happening, now: float) -> Step:
        """Decide about one event.

        Args:
            event: what happened.
            now: seconds, monotonic.
        """
        if not self._on_table:
            self._table.machine.add_model(self._position, initial=self.state)
            self._on_table = True
        source = self.state
        if event.visit is not None and event.visit != self.visit:
            self.late += 1
            return self._unmoved(Outcome.LATE, event)
        row = self._fire(event)
        if row is None:
            return self._unmoved(Outcome.IGNORED, event)
        if self._is_attempt(row, event, source, now) and not self.governor.take(now):
            return self._intervene(source, now)
        return self._follow(row, event, source, now)

    def _unmoved(self, outcome: Outcome, event: Happening) -> Step:
        return Step(outcome, self.state, event.name, self.state, self.visit)

    def _fire(self, event: Happening) -> Row | None:
        if event.name in self.spec.states[self.state].ignore:
            return None
        if not self.spec.rows(self.state, event.name):
            return None
        self._position.fired = None
        self._position.trigger(event.name)
        return self._table.rows.get(id(self._position.fired))

    def _is_attempt(self, row: Row, event: Happening, source: State, now: float) -> bool:
        """Does this step ask something of the server that nothing has paced?

        Progress that a session reports is free, each event once for every attempt that was paid;
        so are the ticks of a timer that stay in the state, since the timer paces them, unless
        they are attempts themselves.
        """
        governed = row.lands_in(source) in GOVERNED
        operates = any(self._is_operation(action) for action in row.do)
        if not governed and not operates:
            return False
        sender = self.spec.events[event.name].sender
        if sender == "timer" and row.dest is None:
            return governed and operates
        if sender != "session":
            self._reported.clear()
            return True
        if event.name in self._reported:
            return not self._was_paced(event, now)
        self._reported.add(event.name)
        return False

    def _is_operation(self, action: str) -> bool:
        return self.spec.actions[action].answers is not None

    def _was_paced(self, event: Happening, now: float) -> bool:
        """Did at least half of the timer pass that should pace this event?"""
        armed = self._armed.get(self.spec.events[event.name].paced_by or "")
        return armed is not None and now - armed.at >= armed.length / 2

    def _intervene(self, source: State, now: float) -> Step:
        """Back off by the governor's own will: the file is asked, and not trusted."""
        self._table.machine.set_state(source, self._position)
        row = self._fire(Happening("hot_loop"))
        actions: tuple[str, ...] = LETTING_GO
        if row is not None and row.dest == "BackingOff":
            actions = tuple(action for action in row.do if not self._is_operation(action))
        actions = tuple(action for action in actions if action in self.spec.actions)
        self._table.machine.set_state("BackingOff", self._position)
        forced = Row(
            id="governor_intervenes",
            source=(source,),
            trigger="hot_loop",
            dest="BackingOff",
            do=actions,
            blame={"error_retry": "hot_loop"},
        )
        return self._follow(forced, Happening("hot_loop"), source, now, governed=True)

    def _follow(
        self, row: Row, event: Happening, source: State, now: float, *, governed: bool = False
    ) -> Step:
        self._apply_effects(event, row.do)
        if row.lands_in(source) == INITIAL or self._is_progress(event):
            self._settle_charge(now)
        failure = self._count_failure(row, event, now)
        if failure is not None:
            self.failure = failure
        cancelled: tuple[str, ...] = tuple(self._armed) if row.dest else self._unwanted(row)
        if row.dest:
            self.visit += 1
        for name in cancelled:
            del self._armed[name]
        return Step(
            Outcome.MOVED if row.dest else Outcome.STAYED,
            source,
            event.name,
            self.state,
            self.visit,
            row=row.id,
            actions=row.do,
            set_timers=self._arm_wanted(now, governed=governed),
            cancel_timers=cancelled,
            failure=failure,
            quiet=row.quiet,
            governed=governed,
        )

    def _apply_effects(self, event: Happening, actions: tuple[str, ...]) -> None:
        event_spec = self.spec.events.get(event.name)
        if event_spec is not None:
            self._position.facts.update(event_spec.sets)
            if event_spec.forgets_failures:
                self._forget_failures()
        for action in actions:
            if action_spec := self.spec.actions.get(action):
                self._position.facts.difference_update(action_spec.clears)

    def _forget_failures(self) -> None:
        self._streaks.clear()
        self._charged_to = None
        self.failure = None

    def _count_failure(self, row: Row, event: Happening, now: float) -> Failure | None:
        kind = self._kind_of_failure(row, event)
        if kind is None:
            return None
        policy_name, error_class = kind
        streak = self._streaks.setdefault(kind, _Streak())
        self._settle_charge(now)
        self._charged_to, self._charged_at = streak, now
        streak.failures += 1
        return Failure(policy_name, error_class, streak.failures, self._draw_delay(kind, streak))

    def _is_progress(self, event: Happening) -> bool:
        event_spec = self.spec.events.get(event.name)
        return event_spec is not None and event_spec.sender == "session"

    def _settle_charge(self, now: float) -> None:
        """Charge the time since the last failure to its kind; what comes now is not its doing."""
        if self._charged_to is not None:
            self._charged_to.elapsed += now - self._charged_at
        self._charged_to = None

    def _kind_of_failure(self, row: Row, event: Happening) -> tuple[str, str] | None:
        if row.blame:
            return next(iter(row.blame.items()))
        if self.spec.events[event.name].sender != "classifier":
            return None
        return event.name, event.error_class or "unknown"

    def _draw_delay(self, kind: tuple[str, str], streak: _Streak) -> float | None:
        policy_name, error_class = kind
        if policy_name not in self.spec.policies:
            return None
        policy = self.spec.policy(policy_name, error_class)
        if policy.is_spent(streak.failures, streak.elapsed):
            return None
        delay = policy.delay(streak.failures, streak.last_delay, self._random)
        if error_class == "hot_loop":
            delay = max(delay, self.governor.pause)
        streak.last_delay = delay
        return delay

    def _timers_wanted(self) -> dict[str, Timer]:
        facts = self._position.facts
        timers = self.spec.states[self.state].timers
        return {n: t for n, t in timers.items() if t.when is None or t.when.met_by(facts)}

    def _unwanted(self, row: Row) -> tuple[str, ...]:
        wanted = self._timers_wanted()
        return tuple(n for n in self._armed if n not in wanted or n in row.restart)

    def _arm_wanted(self, now: float, *, governed: bool) -> tuple[SetTimer, ...]:
        settings = []
        for name, timer in self._timers_wanted().items():
            if name in self._armed:
                continue
            setting = self._setting(name, timer)
            if setting is not None and governed:
                setting = self._paused(setting)
            if setting is not None:
                self._armed[name] = _Armed(now, setting.length)
                settings.append(setting)
        return tuple(settings)

    def _paused(self, setting: SetTimer) -> SetTimer:
        """Let no timer lead back to an attempt before the governor allows one."""
        if all(row.dest not in GOVERNED for row in self.spec.rows(self.state, setting.trigger)):
            return setting
        return replace(setting, length=max(setting.length, self.governor.pause))

    def _setting(self, name: str, timer: Timer) -> SetTimer | None:
        if timer.policy is not None:
            return self._backoff_setting(name, timer)
        length = self._lengths.get(name, timer.seconds(self._lease))
        if length is None:
            return None
        length *= 1 - timer.shorten * self._random.random()
        length = max(length, SHORTEST)
        return SetTimer(name, timer.trigger, length, timer.answer_within, timer.repeat)

    def _backoff_setting(self, name: str, timer: Timer) -> SetTimer:
        if self.failure is not None and self.failure.delay is not None:
            return SetTimer(name, timer.trigger, self.failure.delay)
        return SetTimer(name, timer.exhausted or timer.trigger, 0.0)
