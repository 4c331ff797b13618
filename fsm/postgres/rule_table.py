"""Which of several rules decides, and whether each of them ever can."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from fsm.postgres.evidence import Evidence
from fsm.postgres.rules import (
    Atom,
    CodedRule,
    FindingRule,
    LocalRule,
    MiddlewareRule,
    Rule,
    ServerRule,
)


class RuleTable:
    """Rules, in the order in which they are asked.

    Findings come before all else. Of the rules for a SQLSTATE the most specific one decides: one
    that names facts comes before one that does not; then SQLSTATE with routine and phase, with
    routine, with phase, alone, and last the class of the SQLSTATE. Among equals, and among
    findings and rules for failures without a SQLSTATE, the first one counts.

    Args:
        rules: in any order of sections.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._findings = [rule for rule in rules if isinstance(rule, FindingRule)]
        self._server = _narrow_first(rule for rule in rules if isinstance(rule, ServerRule))
        self._middleware = _narrow_first(rule for rule in rules if isinstance(rule, MiddlewareRule))
        self._local = [rule for rule in rules if isinstance(rule, LocalRule)]

    def decide(self, evidence: Evidence) -> Rule | None:
        """Give the first rule that matches; None where none does."""
        for section in self._sections(evidence.values):
            for rule in section:
                if rule.matches(evidence):
                    return rule
        return None

    def unreachable(self) -> Iterator[Rule]:
        """Give the rules that can never decide, because others always come first."""
        return (rule for rule in self._rules if not self._reachable(rule))

    def _sections(self, values: Mapping[str, tuple[object, ...]]) -> Iterator[Sequence[Rule]]:
        yield self._findings
        if "sqlstate" not in values:
            yield self._local
            return
        if "routine" not in values:
            yield self._middleware
        yield self._server

    def _reachable(self, rule: Rule) -> bool:
        return any(self.decide(_least(rule, atom, text)) is rule for atom, text in rule.atoms())


def _narrow_first(rules: Iterable[CodedRule]) -> Sequence[CodedRule]:
    return sorted(rules, key=lambda rule: rule.specificity, reverse=True)


def _least(rule: Rule, atom: Atom, text: str) -> Evidence:
    """Give the error that shows what ``atom`` names and nothing else.

    A rule that takes this one from ``rule`` names no more than ``rule`` does, so it takes all.
    """
    values: dict[str, tuple[object, ...]] = {key: (value,) for key, value in atom}
    if isinstance(rule, CodedRule):
        # Underscores stand for a code and a function that no rule names.
        values.setdefault("sqlstate", (f"{values.get('sqlstate_class', ('__',))[0]}___",))
        values.setdefault("sqlstate_class", (str(values["sqlstate"][0])[:2],))
    if isinstance(rule, ServerRule):
        values.setdefault("routine", ("_",))
    return Evidence(values, text)


def clashes(rules: Sequence[Rule]) -> Iterator[tuple[Rule, str]]:
    """Give each rule that shares its id, or what it matches, with one before it; and which."""
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
