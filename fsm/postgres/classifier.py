"""Turns an error into a verdict, by rules.

A pure function of the phase, the SQLSTATE, the server's source function and facts. Message text is
translated by the server's ``lc_messages`` and changes between versions, so it is never read when a
Postgres server speaks; only what a middleware says, in constant English, may refine a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

from fsm.errors import SpecError
from fsm.postgres.evidence import Evidence, evidence_of
from fsm.postgres.rule_table import RuleTable, clashes
from fsm.postgres.rules import Rule
from fsm.postgres.rules_loader import SHIPPED, load
from fsm.postgres.verdict import Verdict

_NO_RULE: Final = Rule.model_construct(
    id="no_rule",
    error_class="unknown",
    action="retry",
    reason="no rule knows this error (phase {phase}, SQLSTATE {sqlstate}, {exception}): {message}",
    remedy="Read the journal's record of it, and add a rule of your own if you know what it means.",
)


class Classifier:
    """Turns errors into verdicts.

    Which rule decides is said at ``RuleTable``.

    Args:
        rules: in any order of sections.
        fallback: asked where none of ``rules`` matches.

    Raises:
        SpecError: two rules share an id, or what they match.
    """

    def __init__(self, rules: Sequence[Rule], fallback: Classifier | None = None) -> None:
        problems = [f"rule '{rule.id}': {what}" for rule, what in clashes(rules)]
        if problems:
            raise SpecError(problems)
        self.rules: Final = tuple(rules)
        self._fallback = fallback
        self._table = RuleTable(rules)

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
        evidence = evidence_of(error)
        rule = self._decide(evidence) or _NO_RULE
        return rule.verdict(evidence)

    def unreachable_rules(self) -> tuple[str, ...]:
        """Give the ids of rules that can never decide, because others always come first."""
        return tuple(rule.id for rule in self._table.unreachable())

    def _decide(self, evidence: Evidence) -> Rule | None:
        rule = self._table.decide(evidence)
        if rule is None and self._fallback is not None:
            return self._fallback._decide(evidence)  # noqa: SLF001  (one of us)
        return rule


@cache
def _shipped() -> Classifier:
    return Classifier(load(SHIPPED))
