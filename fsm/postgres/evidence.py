"""What is known of one error, in the words of the rules.

Message text is translated by the server's ``lc_messages`` and changes between versions; it is kept
for what only a middleware says, in constant English.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import psycopg

from fsm.errors import SessionError


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


def evidence_of(error: BaseException) -> Evidence:
    """Collect what any exception tells, and what the one that caused it does."""
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
