"""What an error means: rules, read from errors.yaml, that turn an error into a verdict.

The classifier is a pure function of the phase, the SQLSTATE, the server's source function and
facts. Message text is translated by the server's ``lc_messages`` and changes between versions, so
it is never read when a Postgres server speaks; only what a middleware says, in constant English,
may refine a rule.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from string import Formatter
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeAlias,
    cast,
)

import psycopg
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fsm.errors import BadInput, Phase, SessionError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

ErrorClass: TypeAlias = Literal[
    "transient_network",
    "server_starting_or_stopping",
    "contention",
    "resource_exhausted",
    "auth",
    "configuration",
    "fenced",
    "handler",
    "unknown",
    "hot_loop",
    "data_loss",
    "divergence",
    "protocol_or_bug",
    "poison",
    "takeover_war",
    "shutdown_requested",
]
"""What kind of failure it is; it picks the backoff policy."""

Action: TypeAlias = Literal["retry", "retry_long", "wait", "fail", "stop", "ignore"]
"""What to do about it; all but ``ignore`` are events of the machine, with ``error_`` before."""

SHIPPED: Final = Path(__file__).with_name("errors.yaml")

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


class _Phrase(NamedTuple):
    fact: str
    known: str
    unknown: str
    doubled: str = ""
    """The quote that SQL wants doubled inside the value."""


_PHRASES: Final[Mapping[str, _Phrase]] = {
    "slot": _Phrase("slot", "slot '{}'", "the slot"),
    "slot_literal": _Phrase("slot", "'{}'", "'<slot>'", "'"),
    "publication": _Phrase("publication", "publication '{}'", "the publication"),
    "publication_name": _Phrase("publication", '"{}"', '"<publication>"', '"'),
    "database": _Phrase("database", "database '{}'", "the database"),
    "user": _Phrase("user", "role '{}'", "the role"),
    "user_name": _Phrase("user", '"{}"', '"<role>"', '"'),
    "host": _Phrase("host", "host '{}'", "the host"),
    "plugin": _Phrase("plugin", "'{}'", "another plugin"),
    "holder": _Phrase("holder", "{}", "another session"),
    "wal_status": _Phrase("wal_status", "{}", "not shown"),
    "invalidation_reason": _Phrase("invalidation_reason", "{}", "none given"),
    "seconds": _Phrase("seconds", "{} s", "the time allowed"),
    "errno": _Phrase("errno", "{}", "no errno"),
    "gaierror_errno": _Phrase("gaierror_errno", "{}", "no code"),
    "exception": _Phrase("exception", "{}", "an exception"),
    "lsn": _Phrase("lsn", "LSN {}", "its present LSN"),
    "phase": _Phrase("phase", "{}", "none"),
    "sqlstate": _Phrase("sqlstate", "{}", "none"),
    "routine": _Phrase("routine", "{}", "none"),
    "message": _Phrase("message", "{}", "no message"),
}
"""The placeholders of reason and remedy: the fact, how it reads, and how it reads unknown."""

PLACEHOLDERS: Final = frozenset(_PHRASES)
_LONGEST: Final = 300
"""Characters of a value that a sentence can carry."""

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

_Atom: TypeAlias = tuple[tuple[str, _Literal], ...]
"""One value for each key of a rule."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one error, in the words of the rules.

    Attributes:
        values: by key (``phase``, ``sqlstate``, ``sqlstate_class``, ``routine``, ``facts.NAME``),
            what is known of it; the name of an exception comes with those of its bases.
        text: the message.
        words: what reason and remedy may name, by fact.
    """

    values: Mapping[str, tuple[object, ...]]
    text: str = ""
    words: Mapping[str, object] = field(default_factory=dict)


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
            _check_template(template)
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

    def atoms(self) -> Iterator[tuple[_Atom, str]]:
        """Give the rule taken apart: one value for each key, and one piece of text."""
        names = sorted(self.keys)
        for values in product(*(self.keys[name] for name in names)):
            for text in self.texts or ("",):
                yield tuple(zip(names, values, strict=True)), text

    def verdict(self, evidence: Evidence) -> Verdict:
        """Apply the rule: fill in its sentences."""
        words = {name: _word(phrase, evidence.words) for name, phrase in _PHRASES.items()}
        return Verdict(
            error_class=self.error_class,
            action=self.action,
            reason=self.reason.format_map(words),
            remedy=self.remedy.format_map(words),
            rule=self.id,
        )


class FindingRule(Rule):
    """For what slotkeeper knows itself, most of it named in ``facts["finding"]``."""

    finding: _Names = _Some

    def _keys(self) -> dict[str, tuple[_Literal, ...]]:
        return {**super()._keys(), "facts.finding": self.finding}


class _CodedRule(Rule):
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
    def _check_codes(self) -> _CodedRule:
        if self.sqlstate and self.sqlstate_class:
            raise ValueError("'sqlstate' and 'sqlstate_class' exclude each other")
        return self


class ServerRule(_CodedRule):
    """For what a Postgres server said. Rules without a routine also serve a middleware's code."""

    routine: _Names = _Some

    def _keys(self) -> dict[str, tuple[_Literal, ...]]:
        return {**super()._keys(), "routine": self.routine}


class MiddlewareRule(_CodedRule):
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


@dataclass(frozen=True)
class Verdict:
    """What an error means.

    Attributes:
        error_class: picks the policy; see ``ErrorClass``.
        action: what to do.
        reason: what was found, a clause without a full stop.
        remedy: what an operator can do, one sentence, never empty.
        rule: the id of the rule that decided.
    """

    error_class: ErrorClass
    action: Action
    reason: str
    remedy: str
    rule: str


_NO_RULE: Final = Rule.model_construct(
    id="no_rule",
    error_class="unknown",
    action="retry",
    reason="no rule knows this error (phase {phase}, SQLSTATE {sqlstate}, {exception}): {message}",
    remedy="Read the journal's record of it, and add a rule of your own if you know what it means.",
)


class Classifier:
    """Turns errors into verdicts.

    Findings come before all else. Of the rules for a SQLSTATE the most specific one decides: one
    that names facts comes before one that does not; then SQLSTATE with routine and phase, with
    routine, with phase, alone, and last the class of the SQLSTATE. Among equals, and among
    findings and rules for failures without a SQLSTATE, the first one counts.

    Args:
        rules: in any order of sections.
        fallback: asked where none of ``rules`` matches.

    Raises:
        SpecError: two rules share an id, or what they match.
    """

    def __init__(self, rules: Sequence[Rule], fallback: Classifier | None = None) -> None:
        problems = [f"rule '{rule.id}': {what}" for rule, what in _clashes(rules)]
        if problems:
            raise SpecError(problems)
        self.rules: Final = tuple(rules)
        self._fallback = fallback
        self._findings = [rule for rule in rules if isinstance(rule, FindingRule)]
        self._server = _narrow_first(rule for rule in rules if isinstance(rule, ServerRule))
        self._middleware = _narrow_first(rule for rule in rules if isinstance(rule, MiddlewareRule))
        self._local = [rule for rule in rules if isinstance(rule, LocalRule)]

    @classmethod
    def shipped(cls) -> Classifier:
        """Give the classifier with slotkeeper's own rules."""
        return _shipped()

    def preceded_by(self, rules: Sequence[Rule]) -> Classifier:
        """Give a classifier that asks ``rules`` first, and this one where none of them matches.

        Raises:
            SpecError: two of ``rules`` share an id, or what they match.
        """
        return Classifier(rules, fallback=self)

    def classify(self, error: BaseException) -> Verdict:
        """Say what ``error`` means. Never raises, whatever its facts are."""
        evidence = _evidence(error)
        rule = self._decide(evidence) or _NO_RULE
        return rule.verdict(evidence)

    def unreachable_rules(self) -> tuple[str, ...]:
        """Give the ids of rules that can never decide, because others always come first."""
        return tuple(rule.id for rule in self.rules if not self._reachable(rule))

    def _decide(self, evidence: Evidence) -> Rule | None:
        for table in self._tables(evidence.values):
            for rule in table:
                if rule.matches(evidence):
                    return rule
        return self._fallback._decide(evidence) if self._fallback else None  # noqa: SLF001  (one of us)

    def _tables(self, values: Mapping[str, tuple[object, ...]]) -> Iterator[Sequence[Rule]]:
        yield self._findings
        if "sqlstate" not in values:
            yield self._local
            return
        if "routine" not in values:
            yield self._middleware
        yield self._server

    def _reachable(self, rule: Rule) -> bool:
        return any(self._decide(_least(rule, atom, text)) is rule for atom, text in rule.atoms())


def _narrow_first(rules: Iterable[_CodedRule]) -> Sequence[_CodedRule]:
    return sorted(rules, key=lambda rule: rule.specificity, reverse=True)


def _least(rule: Rule, atom: _Atom, text: str) -> Evidence:
    """Give the error that shows what ``atom`` names and nothing else.

    A rule that takes this one from ``rule`` names no more than ``rule`` does, so it takes all.
    """
    values: dict[str, tuple[object, ...]] = {key: (value,) for key, value in atom}
    if isinstance(rule, _CodedRule):
        # Underscores stand for a code and a function that no rule names.
        values.setdefault("sqlstate", (f"{values.get('sqlstate_class', ('__',))[0]}___",))
        values.setdefault("sqlstate_class", (str(values["sqlstate"][0])[:2],))
    if isinstance(rule, ServerRule):
        values.setdefault("routine", ("_",))
    return Evidence(values, text)


def _clashes(rules: Sequence[Rule]) -> Iterator[tuple[Rule, str]]:
    ids: set[str] = set()
    owners: dict[object, str] = {}
    for rule in rules:
        if rule.id in ids:
            yield rule, "a rule before it has the same id"
        ids.add(rule.id)
        shared = {owners.setdefault(atom, rule.id) for atom in _distinct(rule)} - {rule.id}
        for other in sorted(shared):
            yield rule, f"rule '{other}' matches the same"


def _distinct(rule: Rule) -> Iterator[object]:
    for atom, text in rule.atoms():
        # True == 1, but a rule tells them apart.
        yield type(rule), tuple((key, type(value), value) for key, value in atom), text


def _evidence(error: BaseException) -> Evidence:
    error = _telling(error)
    if isinstance(error, SessionError):
        facts = {**_facts_of(error.__cause__), **error.facts}
        return _build(facts, str(error), error.phase, error.sqlstate, error.routine)
    if isinstance(error, psycopg.Error):
        routine = error.diag.source_function
        return _build(_facts_of(error), str(error), None, error.sqlstate, routine)
    return _build(_facts_of(error), str(error), None, None, None)


def _telling(error: BaseException) -> BaseException:
    """Give the error below one that only says that its session had failed before."""
    while isinstance(error, SessionError) and not error.sqlstate and not error.facts:
        if not isinstance(error.__cause__, SessionError):
            break
        error = error.__cause__
    return error


def _build(
    facts: Mapping[str, object],
    text: str,
    phase: str | None,
    sqlstate: str | None,
    routine: str | None,
) -> Evidence:
    plain = {name: _plain(name, value) for name, value in facts.items()}
    values = {f"facts.{name}": _as_values(value) for name, value in plain.items()}
    top = {"phase": phase, "sqlstate": sqlstate, "routine": routine}
    values |= {key: (value,) for key, value in top.items() if value}
    if sqlstate:
        values["sqlstate_class"] = (sqlstate[:2],)
    words: dict[str, object] = {"message": text, **plain, **top}
    if not words.get("holder") and words.get("active_pid"):
        words["holder"] = f"pid {words['active_pid']}"
    return Evidence(values, text, words)


def _facts_of(error: BaseException | None) -> dict[str, object]:
    if error is None:
        return {}
    facts: dict[str, object] = {"exception": tuple(kind.__name__ for kind in type(error).__mro__)}
    if isinstance(error, socket.gaierror):
        facts["gaierror_errno"] = error.errno
    elif isinstance(error, OSError) and error.errno is not None:
        facts["errno"] = error.errno
    return facts


_RESOLVER_CODES: Final[Mapping[int, str]] = {
    value: name for name, value in vars(socket).items() if name.startswith("EAI_")
}


def _plain(name: str, value: object) -> object:
    """Give enums and system numbers by their names, which are the same on every system."""
    if isinstance(value, Enum):
        return value.name
    if name == "errno" and isinstance(value, int):
        return errno.errorcode.get(value, value)
    if name == "gaierror_errno" and isinstance(value, int):
        return _RESOLVER_CODES.get(value, value)
    return value


def _as_values(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _same(wanted: _Literal, seen: object) -> bool:
    # A rule that says 1 does not mean True, which equals it.
    return type(wanted) is type(seen) and wanted == seen


def _word(phrase: _Phrase, words: Mapping[str, object]) -> str:
    value = words.get(phrase.fact)
    if value is None or value in ("", ()):
        return phrase.unknown
    text = _readable(phrase.fact, value)
    if phrase.doubled:
        text = text.replace(phrase.doubled, phrase.doubled * 2)
    return phrase.known.format(text)


def _readable(fact: str, value: object) -> str:
    if fact == "lsn" and isinstance(value, int) and value >= 0:
        return f"{value >> 32:X}/{value & 0xFFFFFFFF:X}"
    if isinstance(value, float):
        return f"{value:.1f}"
    if fact == "exception" and isinstance(value, tuple):
        return str(value[0])
    if isinstance(value, tuple | list):
        value = ", ".join(str(part) for part in value)
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _check_template(template: str) -> None:
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"'{template}' cannot be filled in: {error}") from error
    for _, name, layout, conversion in parts:
        if name is None:
            continue
        if name not in PLACEHOLDERS or layout or conversion:
            names = ", ".join(sorted(PLACEHOLDERS))
            raise ValueError(f"no placeholder is called '{{{name}}}'; there are {names}")


# --- the file ---

_Path: TypeAlias = tuple[str | int, ...]
_Position: TypeAlias = tuple[int, int]


def load(path: Path) -> tuple[Rule, ...]:
    """Read rules from a file.

    Raises:
        BadInput: the file cannot be read.
        SpecError: with all problems, each with file, line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the rules file '{path}': {error}") from error
    return parse(text, str(path))


def parse(text: str, name: str = "errors.yaml") -> tuple[Rule, ...]:
    """Read rules from YAML text.

    Args:
        text: YAML, as in the shipped errors.yaml.
        name: what to call the file in problems.

    Raises:
        SpecError: with all problems, each with file, line and column.
    """
    node, data = _read(text, name)
    problems = list(_repeated_keys(node, frozenset()))
    try:
        rules = RulesFile.model_validate(data).all()
    except ValidationError as error:
        problems += [
            (_position(node, item["loc"]), _describe(item, data)) for item in error.errors()
        ]
        rules = ()
    where = _rule_positions(node)
    problems += [(where[id_], what) for id_, what in _rule_problems(rules)]
    if problems:
        raise SpecError(
            [f"{name}:{line}:{column}: {what}" for (line, column), what in sorted(problems)]
        )
    return rules


@cache
def _shipped() -> Classifier:
    return Classifier(load(SHIPPED))


def _read(text: str, name: str) -> tuple[yaml.Node, Any]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise SpecError([f"{name}:{line}:{column}: not YAML: {error.problem}"]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError([f"{name}:1:1: not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(node, yaml.MappingNode):
        raise SpecError([f"{name}:1:1: the file should begin with 'version: 1'"])
    return node, data


def _repeated_keys(node: yaml.Node, above: frozenset[int]) -> Iterator[tuple[_Position, str]]:
    if isinstance(node, yaml.ScalarNode) or id(node) in above:
        return
    above |= {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item, above)
        return
    known: set[str] = set()
    for key, value in node.value:
        if key.value in known:
            yield _mark(key), f"key '{key.value}' stands here twice"
        if isinstance(key, yaml.ScalarNode):
            known.add(key.value)
        yield from _repeated_keys(value, above)


def _rule_problems(rules: Sequence[Rule]) -> Iterator[tuple[str, str]]:
    clashes = list(_clashes(rules))
    for rule, what in clashes:
        yield rule.id, f"rule '{rule.id}': {what}"
    if clashes:
        return
    for id_ in Classifier(rules).unreachable_rules():
        yield id_, f"rule '{id_}' can never decide: others always come before it"


def _rule_positions(node: yaml.Node) -> Mapping[str, _Position]:
    """Give where each rule stands, by id; the last one where an id is there twice."""
    found: dict[str, _Position] = {}
    for _, section in node.value:
        rules: Iterable[yaml.Node] = section.value if isinstance(section, yaml.SequenceNode) else ()
        for rule in rules:
            for key, value in rule.value if isinstance(rule, yaml.MappingNode) else ():
                if key.value == "id":
                    found[str(value.value)] = _mark(value)
    return found


def _position(node: yaml.Node, path: _Path) -> _Position:
    """Give line and column of what stands at ``path``, or of what holds it."""
    for step in path:
        below = _child(node, step)
        if below is None:
            break
        node = below
    return _mark(node)


def _child(node: yaml.Node, step: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
        return cast("yaml.Node", node.value[step])
    return None


def _mark(node: yaml.Node) -> _Position:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _describe(item: Any, data: Any) -> str:
    path: _Path = tuple(item["loc"])
    return _named(path, data) + _problem(item, path)


def _named(path: _Path, data: Any) -> str:
    try:
        return f"rule '{data[path[0]][path[1]]['id']}': "
    except (IndexError, KeyError, TypeError):
        return ""


def _problem(item: Any, path: _Path) -> str:
    key = next((part for part in reversed(path) if isinstance(part, str)), "the file")
    match item["type"]:
        case "extra_forbidden":
            return f"unknown key '{key}'"
        case "missing":
            return f"'{key}' is missing"
        case "value_error":
            return str(item["ctx"]["error"])
        case "literal_error":
            return f"{key}: '{item['input']}' is not one of {item['ctx']['expected']}"
        case _:
            return f"{key}: {item['msg'][0].lower()}{item['msg'][1:]}"
