"""What an error means, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from fsm.runtime.verdict import ErrorAction

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

Action: TypeAlias = ErrorAction
"""What to do about it; all but ``ignore`` are events of the machine, with ``error_`` before."""


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
