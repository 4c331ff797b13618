"""What an error means: rules, read from errors.yaml, that turn an error into a verdict.

This is where hosts import it from. ``evidence`` collects what is known of an error, ``rules`` says
what a rule may name, ``rules_loader`` reads them, ``rule_table`` finds the one that decides,
``sentences`` fills in its words, and ``classifier`` joins these.
"""

from fsm.postgres.classifier import Classifier
from fsm.postgres.rules import FACTS, FindingRule, LocalRule, MiddlewareRule, Rule, ServerRule
from fsm.postgres.rules_loader import SHIPPED, load, parse
from fsm.postgres.sentences import PLACEHOLDERS
from fsm.postgres.verdict import Action, ErrorClass, Verdict

__all__ = [
    "FACTS",
    "PLACEHOLDERS",
    "SHIPPED",
    "Action",
    "Classifier",
    "ErrorClass",
    "FindingRule",
    "LocalRule",
    "MiddlewareRule",
    "Rule",
    "ServerRule",
    "Verdict",
    "load",
    "parse",
]
