"""What errors.yaml may say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import product
from typing import Annotated, Final, Literal, TypeAlias, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fsm.errors import Phase
from fsm.postgres import sentences
from fsm.postgres.evidence import Evidence
from fsm.postgres.verdict import Action, ErrorClass, Verdict

FACTS: Final[Mapping[str, str]] = {
    "attempt": "which failure in a row this is, from 1, as the machine counts",
    "cancel_requested": "we sent a cancel request",
    "closed": "the connection was closed by ourselves",
    "conn_status": "name of the last PGconn.status before it turned BAD; BAD where it began so",
    "dsn_function": "the host's function that gives the connection string raised",
    "end_of_copy": "COPY ended with COMMAND_OK although we sent no CopyDone",
    "eof": "the other side closed the connection without a word",
    "errno": "name or number of the operating system's error",
    "exception": "name of the exception, or of one of its bases",
    "gaierror_errno": "name or number of the resolver's error",
    "host_kind": "tcp or unix",
    "in_recovery": "pg_is_in_recovery()",
    "invalidation_reason": "column of pg_replication_slots; on 16 'conflicting' for its boolean",
    "max_wal_senders": "the server's setting",
    "needs_password": "PGconn.needs_password",
    "notice_sqlstate": "SQLSTATE of the last WARNING before the session ended",
    "previously_streamed": "this consumer has streamed from a slot of this name before",
    "protocol": "libpq could not make sense of the stream",
    "same_database": "the slot belongs to the session's database",
    "server_spoke": "the other side sent an error, though one without fields",
    "session": "'lock' where the failed session held the lock and another one streams",
    "slot_exists": "pg_replication_slots has a row for the slot",
    "slot_type": "column of pg_replication_slots",
    "stop_requested": "we were asked to stop",
    "synced": "column of pg_replication_slots",
    "target_session_attrs": "what the connection string asks of the server's role",
    "timeout": "a deadline of ours passed",
    "tls_probe": "what answers an SSLRequest on a plain socket: S, N, E, EOF or other",
    "wal_status": "column of pg_replication_slots",
}
"""The facts that a rule may name. ``finding`` has its own key and its own section."""


_Literal: TypeAlias = bool | int | str | None


def _as_tuple(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value,)


def _as_codes(value: object) -> object:
    codes = cast("tuple[object, ...]", _as_tuple(value))
    if all(isinstance(code, str) for code in codes):
        return codes
    raise ValueError("a code that YAML reads as a number needs quotes, as in '55006'")


_Some = Field(default=(), min_length=1)
_Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
_Phases: TypeAlias = Annotated[tuple[Phase, ...], BeforeValidator(_as_tuple)]
_Literals: TypeAlias = Annotated[
    tuple[_Literal, ...], BeforeValidator(_as_tuple), Field(min_length=1)
]
_Sqlstate: TypeAlias = Annotated[str, Field(pattern=r"^[0-9A-Z]{5}$")]
_SqlstateClass: TypeAlias = Annotated[str, Field(pattern=r"^[0-9A-Z]{2}$")]
_Sqlstates: TypeAlias = Annotated[tuple[_Sqlstate, ...], BeforeValidator(_as_codes)]
_SqlstateClasses: TypeAlias = Annotated[tuple[_SqlstateClass, ...], BeforeValidator(_as_codes)]
_Sentence: TypeAlias = Annotated[str, Field(min_length=1)]


Atom: TypeAlias = tuple[tuple[str, _Literal], ...]
"""One value for each key of a rule."""


class Rule(BaseModel):
    """One rule: what it matches, and what that means.

    Each match key takes one value or a list; all keys of a rule must hold.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    phase: _Phases = _Some
    facts: dict[str, _Literals] = {}
    error_class: ErrorClass = Field(alias="class")
    action: Action
    reason: _Sentence
    remedy: _Sentence
    seen: _Sentence
    """Where this is documented, or in which source function it is raised, and in what versions."""

    @model_validator(mode="after")
    def _check(self) -> Rule:
        if not self.keys and not self.texts:
            raise ValueError("the rule names nothing to match, so it would match everything")
        for name in self.facts:
            if name not in FACTS:
                raise ValueError(f"no fact is called '{name}'; there are {', '.join(FACTS)}")
        for template in (self.reason, self.remedy):
            sentences.check(template)
        return self

    @cached_property
    def keys(self) -> Mapping[str, tuple[_Literal, ...]]:
        """By key, the values of which one must be present."""
        return {name: values for name, values in self._keys().items() if values}

    def _keys(self) -> dict[str, tuple[_Literal, ...]]:
        facts = {f"facts.{name}": values for name, values in self.facts.items()}
        return {**facts, "phase": self.phase}

    @property
    def texts(self) -> tuple[str, ...]:
        """Pieces of text of which one must be in the message."""
        return ()

    def matches(self, evidence: Evidence) -> bool:
        """Does all that the rule names hold?"""
        if self.texts and not any(text in evidence.text for text in self.texts):
            return False
        return all(
            any(_same(value, seen) for seen in evidence.values.get(key, ()) for value in values)
            for key, values in self.keys.items()
        )

    def atoms(self) -> Iterator[tuple[Atom, str]]:
        """Give the rule taken apart: one value for each key, and one piece of text."""
        names = sorted(self.keys)
        for values in product(*(self.keys[name] for name in names)):
            for text in self.texts or ("",):
                yield tuple(zip(names, values, strict=True)), text

    def verdict(self, evidence: Evidence) -> Verdict:
        """Apply the rule: fill in its sentences."""
        return Verdict(
            error_class=self.error_class,
            action=self.action,
            reason=sentences.fill(self.reason, evidence.words),
            remedy=sentences.fill(self.remedy, evidence.words),
            rule=self.id,
        )


class FindingRule(Rule):
    """For what slotkeeper knows itself, most of it named in ``facts["finding"]``."""

    finding: _Names = _Some

    def _keys(self) -> dict[str, tuple[_Literal, ...]]:
        return {**super()._keys(), "facts.finding": self.finding}


class CodedRule(Rule):
    """For what came with a SQLSTATE."""

    sqlstate: _Sqlstates = _Some
    sqlstate_class: _SqlstateClasses = _Some

    def _keys(self) -> dict[str, tuple[_Literal, ...]]:
        codes = {"sqlstate": self.sqlstate, "sqlstate_class": self.sqlstate_class}
        return {**super()._keys(), **codes}

    @property
    def specificity(self) -> tuple[bool, ...]:
        """How narrow the rule is: facts first, then SQLSTATE, its class, routine and phase."""
        keys = self.keys
        return (
            bool(self.facts),
            "sqlstate" in keys,
            "sqlstate_class" in keys,
            "routine" in keys,
            "phase" in keys,
            bool(self.texts),
        )

    @model_validator(mode="after")
    def _check_codes(self) -> CodedRule:
        if self.sqlstate and self.sqlstate_class:
            raise ValueError("'sqlstate' and 'sqlstate_class' exclude each other")
        return self


class ServerRule(CodedRule):
    """For what a Postgres server said. Rules without a routine also serve a middleware's code."""

    routine: _Names = _Some

    def _keys(self) -> dict[str, tuple[_Literal, ...]]:
        return {**super()._keys(), "routine": self.routine}


class MiddlewareRule(CodedRule):
    """For what a pooler or a provider's proxy said: a SQLSTATE without a source function."""

    text: _Names = _Some

    @property
    def texts(self) -> tuple[str, ...]:
        """Pieces of text of which one must be in the message."""
        return self.text


class LocalRule(Rule):
    """For failures without a SQLSTATE."""

    text: _Names = _Some

    @property
    def texts(self) -> tuple[str, ...]:
        """Pieces of text of which one must be in the message."""
        return self.text

    @model_validator(mode="after")
    def _check_text(self) -> LocalRule:
        if self.text and self.facts.get("server_spoke") != (True,):
            raise ValueError(
                "'text' needs 'server_spoke: true' beside it: the client library's own messages"
                " are translated"
            )
        return self


class RulesFile(BaseModel):
    """What errors.yaml may say."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1]
    findings: list[FindingRule] = []
    rules: list[ServerRule] = []
    middleware: list[MiddlewareRule] = []
    local: list[LocalRule] = []

    def all(self) -> tuple[Rule, ...]:
        """Give all rules, in the order of the file."""
        return (*self.findings, *self.rules, *self.middleware, *self.local)


def _same(wanted: _Literal, seen: object) -> bool:
    # A rule that says 1 does not mean True, which equals it.
    return type(wanted) is type(seen) and wanted == seen
