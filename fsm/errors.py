"""The errors that slotkeeper raises.

SlotkeeperError
├── BadInput       what the caller gave cannot be used: a DSN, a name, an option
│   └── SpecError  states.yaml says what it may not; every problem at once
├── SessionError   one Postgres session failed: phase, sqlstate, routine, facts
├── SlotFailed     the keeper is in Failed: class, reason, remedy
├── LeaseLost      another consumer had the slot while the host worked
├── AckRefused     an acknowledgement that would confirm what was not read
└── DecodeError    the stream holds what pgoutput's protocol does not allow

The psycopg error, where there is one, is the ``__cause__``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

Phase: TypeAlias = Literal[
    "connect",
    "ssl",
    "startup",
    "lock",
    "publication_check",
    "create_slot",
    "start",
    "streaming",
    "standby_status",
    "drop_slot",
]
"""Where in a session's life something happened."""


def _rebuild(kind: type[SlotkeeperError], message: str, state: dict[str, Any]) -> SlotkeeperError:
    error = kind.__new__(kind)
    error.args = (message,)
    error.__dict__.update(state)
    return error


class SlotkeeperError(Exception):
    """Base of all errors that slotkeeper raises. They can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.__dict__)


class BadInput(SlotkeeperError):
    """What the caller gave cannot be used; the message says what, where and what to do."""


class SpecError(BadInput):
    """A machine file says what it may not.

    Attributes:
        problems: one sentence each, ``FILE:LINE:COLUMN: what, and what would be right``.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class SessionError(SlotkeeperError):
    """One session failed. It says what was seen; what it means is the classifier's to say.

    Attributes:
        phase: where in the session's life it happened.
        sqlstate: five characters, or None where no server (or a middleware) spoke.
        routine: the source function of the server that raised it (``diag.source_function``);
            None where the other side is no Postgres server.
        facts: what else is known and language-free, by name: ``errno``, ``conn_status``,
            ``active_pid``, ``wal_status``, ``lsn``, ...
    """

    def __init__(
        self,
        message: str,
        *,
        phase: Phase,
        sqlstate: str | None = None,
        routine: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.phase: Phase = phase
        self.sqlstate = sqlstate
        self.routine = routine
        self.facts: dict[str, Any] = dict(facts or {})


class SlotFailed(SlotkeeperError):
    """The keeper stopped in Failed.

    Attributes:
        error_class: the class of the error that ended it, as in states.yaml.
        reason: what was found, in one sentence.
        remedy: what an operator can do, in one sentence.
        phase, sqlstate, facts: of the error that ended it.
    """

    def __init__(
        self,
        reason: str,
        *,
        error_class: str,
        remedy: str,
        phase: Phase | None = None,
        sqlstate: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{reason.rstrip('.')}. {remedy}".strip())
        self.error_class = error_class
        self.reason = reason
        self.remedy = remedy
        self.phase = phase
        self.sqlstate = sqlstate
        self.facts: dict[str, Any] = dict(facts or {})


class LeaseLost(SlotkeeperError):
    """The slot was lost, and moved on by someone else, while the host worked on a transaction."""


class AckRefused(SlotkeeperError):
    """The acknowledgement would confirm what the host has not read."""


class DecodeError(SlotkeeperError):
    """A message of the stream does not follow pgoutput's protocol.

    Attributes:
        message_name: which message, for example ``Insert``.
        offset: the byte of the message at which decoding stopped.
    """

    def __init__(self, problem: str, *, message_name: str, offset: int) -> None:
        super().__init__(f"{message_name} message, byte {offset}: {problem}")
        self.message_name = message_name
        self.offset = offset
