"""What states.yaml may say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from fsm.machine.backoff import Jitter, Policy, Seconds

STATES: Final = ("Idle", "Locking", "Acquiring", "Streaming", "BackingOff", "Failed")
INITIAL: Final = "Idle"

State: TypeAlias = Literal["Idle", "Locking", "Acquiring", "Streaming", "BackingOff", "Failed"]
PolicyName: TypeAlias = Literal["error_retry", "error_retry_long", "error_wait"]
Sender: TypeAlias = Literal["host", "session", "timer", "governor", "classifier"]

Path: TypeAlias = tuple[str | int, ...]
Problem: TypeAlias = tuple[Path, str]
"""Where in the file, as keys and indices; what is wrong and what would be right."""


def _as_name(value: str) -> str:
    if not value.isidentifier() or value.startswith("_"):
        raise ValueError(
            "a name is made of letters, digits and underscores and begins with a letter"
        )
    return value


Name: TypeAlias = Annotated[str, AfterValidator(_as_name)]
Names: TypeAlias = Annotated[tuple[Name, ...], Field(strict=False)]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _or_one_alone(schema: dict[str, Any]) -> None:
    """A list of one may be written without brackets."""
    several = {key: schema.pop(key) for key in ("type", "items", "minItems")}
    schema["anyOf"] = [several["items"], several]


class _Part(BaseModel):
    # Strict: YAML reads 'after: yes' as true, which otherwise would count as one second.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Condition(_Part):
    """A fact, or ``not`` a fact."""

    fact: Name
    holds: bool = True

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if isinstance(value, Condition | Mapping):
            return value
        words = value.split() if isinstance(value, str) else ()
        if len(words) == 1:
            return {"fact": words[0], "holds": True}
        if len(words) == 2 and words[0] == "not":  # noqa: PLR2004  (the word and the fact)
            return {"fact": words[1], "holds": False}
        raise ValueError("a condition is a fact, or 'not' and a fact")

    def met_by(self, facts: Iterable[str]) -> bool:
        """Is it true where just these facts hold?"""
        return (self.fact in facts) is self.holds

    def __str__(self) -> str:
        return self.fact if self.holds else f"not {self.fact}"


def _condition_schema(schema: dict[str, Any]) -> None:
    schema.clear()
    schema.update(type="string", pattern=r"^(not )?[A-Za-z]\w*$", title="a fact, or not a fact")


Condition.model_config["json_schema_extra"] = _condition_schema


class Action(_Part):
    """Something that the machine can ask for.

    With ``answers`` (an empty list included) it is an operation: it runs on until one of these
    events, or an error, arrives.
    """

    about: str
    answers: Names | None = None
    clears: Names = ()


class Event(_Part):
    """Something that can happen, and who may say that it did."""

    sender: Sender = Field(alias="from")
    about: str = ""
    sets: Names = ()
    paced_by: Name | None = None
    """The timer whose length passes before this event can come."""
    forgets_failures: bool = False
    examples: dict[Name, str] = Field(default_factory=dict)
    """Troubles that the classifier calls so, by their class, in an operator's words."""


class OfLease(_Part):
    """A part of the lease."""

    of_lease: Annotated[float, Field(gt=0, le=1)]


class Timer(_Part):
    """A timer of a state, set on entry or as soon as ``when`` holds."""

    after: Seconds | OfLease | None = None
    """Seconds, or a part of the lease; null is off."""
    policy: Literal["of_error"] | None = None
    """Its length is the backoff policy of the error that led here."""
    trigger: Name
    exhausted: Name | None = None
    """What it triggers, at once, where the policy allows no further try."""
    when: Condition | None = None
    repeat: bool = False
    shorten: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The length is drawn between (1 - shorten) * after and after."""
    answer_within: Seconds = 0.0
    """Seconds added before it fires, for an answer that is on its way."""

    @model_validator(mode="after")
    def _one_length(self) -> Timer:
        if self.policy is not None and self.after is not None:
            raise ValueError("a timer has either 'after' or 'policy', not both")
        if self.policy is None and "after" not in self.model_fields_set:
            raise ValueError("a timer needs 'after' (seconds, or null for off) or 'policy'")
        return self

    def seconds(self, lease: float) -> float | None:
        """Give its full length in seconds; None where it is off or follows a policy."""
        if isinstance(self.after, OfLease):
            return self.after.of_lease * lease
        return self.after


class StateSpec(_Part):
    """What is true in a state, which timers run, which events mean nothing there."""

    about: str
    requires: Names = ()
    """Facts that hold whenever the state is entered; ``verify`` proves it."""
    timers: dict[Name, Timer] = Field(default_factory=dict)
    ignore: Names = ()


class Row(_Part):
    """One transition."""

    id: Name
    about: str = ""
    source: Annotated[
        tuple[State, ...],
        Field(min_length=1, strict=False),
        BeforeValidator(_as_list),
        Field(json_schema_extra=_or_one_alone),
    ]
    trigger: Name
    dest: State | None = None
    """None stays in the state, and the state's timers run on."""
    when: Condition | None = None
    do: Names = ()
    restart: Names = ()
    """Timers of the state that start afresh; for rows without dest."""
    blame: Annotated[dict[PolicyName, Name], Field(max_length=1)] = {}
    """Policy and class that this row counts as, where its trigger is no classified error."""
    quiet: bool = False
    """A tick that the journal does not write down."""

    def lands_in(self, source: State) -> State:
        """Give the state after this row, taken from ``source``."""
        return self.dest or source


class PolicyOverride(_Part):
    """What differs for one class."""

    initial_delay: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    max_delay: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    jitter: Jitter | None = None
    floor: Seconds | None = None
    max_retries: Annotated[int, Field(ge=0)] | None = None
    max_elapsed: Seconds | None = None

    @field_validator("initial_delay", "factor", "max_delay", "jitter", "floor")
    @classmethod
    def _not_null(cls, value: object) -> object:
        if value is None:
            raise ValueError("null says nothing here; leave the key out to keep the policy's own")
        return value


class PolicySpec(Policy):
    """The policy of one of the classifier's actions, and what differs by class."""

    by_class: dict[Name, PolicyOverride] = Field(default_factory=dict)

    def of_class(self, error_class: str) -> Policy:
        """Give the policy for one class of error."""
        fields = self.model_dump(exclude={"by_class"})
        if override := self.by_class.get(error_class):
            fields |= override.model_dump(include=override.model_fields_set)
        return Policy(**fields)


class Spec(_Part):
    """A whole machine."""

    version: Literal[1]
    facts: dict[Name, str]
    actions: dict[Name, Action]
    events: dict[Name, Event]
    classes: dict[Name, str]
    policies: dict[PolicyName, PolicySpec]
    states: dict[State, StateSpec]
    transitions: Annotated[tuple[Row, ...], Field(strict=False)]

    def policy(self, name: str, error_class: str) -> Policy:
        """Give the backoff policy of an error, by the classifier's action and the class."""
        return self.policies[name].of_class(error_class)  # type: ignore[index]  # checked by problems()

    def rows(self, source: State, trigger: str) -> list[Row]:
        """Give the rows that could fire, in the order of the file."""
        return self._rows.get((source, trigger), [])

    @cached_property
    def _rows(self) -> Mapping[tuple[State, str], list[Row]]:
        table: dict[tuple[State, str], list[Row]] = {}
        for row in self.transitions:
            for source in row.source:
                table.setdefault((source, row.trigger), []).append(row)
        return table


RESERVED: Final = frozenset({"state", "trigger", "facts", "fired", "may_trigger"})
"""Names that transitions, or the engine's model, already uses on the model."""


def problems(spec: Spec) -> Iterator[Problem]:
    """Yield what is wrong with a Spec beyond the shape of its parts."""
    yield from _unknown_names(spec)
    yield from _impossible_policies(spec)
    yield from _missing_parts(spec)
    yield from _reserved_triggers(spec)
    yield from _repeated_rows(spec)
    yield from _undecided_pairs(spec)


def _expect(path: Path, name: str, known: Iterable[str], kind: str) -> Iterator[Problem]:
    known = sorted(known)
    if name not in known:
        yield path, f"unknown {kind} '{name}'; known are: {', '.join(known) or 'none'}"


def _unknown_names(spec: Spec) -> Iterator[Problem]:
    yield from _unknown_names_of_vocabulary(spec)
    yield from _unknown_names_of_states(spec)
    yield from _unknown_names_of_rows(spec)


def _unknown_names_of_vocabulary(spec: Spec) -> Iterator[Problem]:
    for name, action in spec.actions.items():
        for index, event in enumerate(action.answers or ()):
            yield from _expect(("actions", name, "answers", index), event, spec.events, "event")
        for index, fact in enumerate(action.clears):
            yield from _expect(("actions", name, "clears", index), fact, spec.facts, "fact")
    timers = {timer for state in spec.states.values() for timer in state.timers}
    for name, event_spec in spec.events.items():
        for index, fact in enumerate(event_spec.sets):
            yield from _expect(("events", name, "sets", index), fact, spec.facts, "fact")
        if event_spec.paced_by is not None:
            yield from _expect(("events", name, "paced_by"), event_spec.paced_by, timers, "timer")
        for error_class in event_spec.examples:
            path: Path = ("events", name, "examples", error_class)
            yield from _expect(path, error_class, spec.classes, "class")
    for policy_name, policy in spec.policies.items():
        for error_class in policy.by_class:
            path = ("policies", policy_name, "by_class", error_class)
            yield from _expect(path, error_class, spec.classes, "class")


def _impossible_policies(spec: Spec) -> Iterator[Problem]:
    for name, policy in spec.policies.items():
        for error_class in (None, *policy.by_class):
            merged = policy if error_class is None else policy.of_class(error_class)
            path: Path = ("policies", name)
            if error_class is not None:
                path = (*path, "by_class", error_class)
            if merged.initial_delay > merged.max_delay:
                yield (
                    path,
                    (
                        f"initial_delay {merged.initial_delay:g} is above max_delay "
                        f"{merged.max_delay:g}; raise max_delay or lower initial_delay"
                    ),
                )


def _unknown_names_of_states(spec: Spec) -> Iterator[Problem]:
    for state, state_spec in spec.states.items():
        path: Path = ("states", state)
        for index, fact in enumerate(state_spec.requires):
            yield from _expect((*path, "requires", index), fact, spec.facts, "fact")
        for index, event in enumerate(state_spec.ignore):
            yield from _expect((*path, "ignore", index), event, spec.events, "event")
        for name, timer in state_spec.timers.items():
            at = (*path, "timers", name)
            yield from _expect((*at, "trigger"), timer.trigger, spec.events, "event")
            if timer.exhausted is not None:
                yield from _expect((*at, "exhausted"), timer.exhausted, spec.events, "event")
            if timer.when is not None:
                yield from _expect((*at, "when"), timer.when.fact, spec.facts, "fact")


def _unknown_names_of_rows(spec: Spec) -> Iterator[Problem]:
    for index, row in enumerate(spec.transitions):
        path: Path = ("transitions", index)
        yield from _expect((*path, "trigger"), row.trigger, spec.events, "event")
        if row.when is not None:
            yield from _expect((*path, "when"), row.when.fact, spec.facts, "fact")
        for position, action in enumerate(row.do):
            yield from _expect((*path, "do", position), action, spec.actions, "action")
        for position, timer in enumerate(row.restart):
            known = set.intersection(
                *(set(spec.states[s].timers) if s in spec.states else set() for s in row.source)
            )
            yield from _expect((*path, "restart", position), timer, known, "timer of this state")
        for policy, error_class in row.blame.items():
            yield from _expect((*path, "blame", policy), error_class, spec.classes, "class")


def _missing_parts(spec: Spec) -> Iterator[Problem]:
    for state in STATES:
        if state not in spec.states:
            yield ("states",), f"state '{state}' is missing; the six states are {', '.join(STATES)}"
    for policy in ("error_retry", "error_retry_long", "error_wait"):
        if policy not in spec.policies:
            yield ("policies",), f"policy '{policy}' is missing"


def _reserved_triggers(spec: Spec) -> Iterator[Problem]:
    for name in spec.events:
        if name in RESERVED or name.startswith(("is_", "to_", "may_", "on_")):
            yield (
                ("events", name),
                f"an event cannot be named '{name}': the engine uses that name itself",
            )


def _repeated_rows(spec: Spec) -> Iterator[Problem]:
    ids: set[str] = set()
    before: dict[tuple[State, str], list[Row]] = {}
    for index, row in enumerate(spec.transitions):
        path: Path = ("transitions", index)
        if row.id in ids:
            yield (
                (*path, "id"),
                f"two rows have the id '{row.id}'; an id names one row and its test",
            )
        ids.add(row.id)
        for source in row.source:
            earlier = before.setdefault((source, row.trigger), [])
            if _always_decided(earlier) or any(row.when == other.when for other in earlier):
                yield path, _never_fires(row, source, earlier)
            earlier.append(row)


def _never_fires(row: Row, source: State, earlier: list[Row]) -> str:
    for other in earlier:
        if row.when == other.when:
            twin = f"row '{other.id}' has the same source, trigger and condition"
            return f"row '{row.id}' can never fire: {twin}"
    others = " and ".join(f"'{other.id}'" for other in earlier)
    return f"row '{row.id}' can never fire: before it, {others} decide every case in {source}"


def _undecided_pairs(spec: Spec) -> Iterator[Problem]:
    for state, state_spec in spec.states.items():
        for event in spec.events:
            rows = spec.rows(state, event)
            if event in state_spec.ignore:
                if rows:
                    yield (
                        ("states", state, "ignore"),
                        f"'{event}' is ignored in {state}, yet row '{rows[0].id}' reacts to it",
                    )
                continue
            if not _always_decided(rows):
                remedy = f"add a row for it, or put {event} into the state's 'ignore'"
                yield ("states", state), f"{state} does not decide '{event}'; {remedy}"


def _always_decided(rows: list[Row]) -> bool:
    if any(row.when is None for row in rows):
        return True
    conditions = {(row.when.fact, row.when.holds) for row in rows if row.when is not None}
    return any((fact, not holds) in conditions for fact, holds in conditions)
