"""Turns what libpq reports of a failure into a SessionError."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import errors as pg_errors
from psycopg.pq import DiagnosticField

from fsm.errors import Phase, SessionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg.pq.abc import PGresult

# libpq writes "%s:  " after the severity and "%s: " after the SQLSTATE, outside of what is
# translated (pqBuildErrorMessage3 in fe-protocol3.c).
_SQLSTATE = re.compile(r":\s\s([0-9A-Z]{5}): ")
# "LOCATION:  auth_failed, auth.c:334"; its first word is translated.
_LOCATION = re.compile(r"\S[^:]*:\s+(\w+), [^\s,]+:\d+\s*")

_DIAGNOSTICS = {
    "severity": DiagnosticField.SEVERITY_NONLOCALIZED,
    "detail": DiagnosticField.MESSAGE_DETAIL,
    "hint": DiagnosticField.MESSAGE_HINT,
    "context": DiagnosticField.CONTEXT,
    "source_file": DiagnosticField.SOURCE_FILE,
}


@dataclass(frozen=True, slots=True)
class ConnectText:
    """What the text of a connection failure holds.

    Attributes:
        line: one line for people, without severity, SQLSTATE, LOCATION and advice.
        primary: the server's primary message, or libpq's own line where no server spoke.
        sqlstate: None where no server spoke, or verbosity could not be set.
        routine: None likewise, and where a middleware spoke: those send no source function.
    """

    line: str
    primary: str
    sqlstate: str | None = None
    routine: str | None = None


def read_connect_text(text: str) -> ConnectText:
    """Read the text of a failed connection attempt; of several attempts, the last that says most.

    With ``sslmode=prefer`` libpq tries twice and joins both texts.

    Args:
        text: ``PQerrorMessage`` after the failure, its verbosity set by ``show_sqlstate``.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    spoken = [(i, found) for i, line in enumerate(lines) if (found := _SQLSTATE.search(line))]
    if not spoken:
        # libpq's advice is set off by a tab.
        own = [line for line in lines if not line[0].isspace()]
        line = own[-1].strip() if own else "the connection failed and libpq does not say why"
        return ConnectText(line=line, primary=line)
    at, found = spoken[-1]
    where, _, _severity = lines[at][: found.start()].rpartition(" ")
    primary = lines[at][found.end() :].strip()
    located = (_LOCATION.fullmatch(line) for line in lines[at + 1 :])
    return ConnectText(
        line=f"{where} {primary}".strip(),
        primary=primary,
        sqlstate=found[1],
        routine=next((match[1] for match in located if match), None),
    )


class Notice(NamedTuple):
    """A NOTICE or WARNING of the server.

    Attributes:
        sqlstate: five characters; for example 55000 of routine ``LoadPublications`` on 18: a
            publication is missing and its changes are skipped.
        routine: the server's source function.
        severity: ``WARNING``, ``NOTICE``, ...; never translated.
        message: the primary text, in the server's language.
    """

    sqlstate: str | None
    routine: str | None
    severity: str | None
    message: str


def notice(result: PGresult) -> Notice:
    """Read what libpq gives its notice receiver."""
    return Notice(
        sqlstate=_field(result, DiagnosticField.SQLSTATE),
        routine=_field(result, DiagnosticField.SOURCE_FUNCTION),
        severity=_field(result, DiagnosticField.SEVERITY_NONLOCALIZED),
        message=_field(result, DiagnosticField.MESSAGE_PRIMARY) or "",
    )


def from_result(
    result: PGresult, phase: Phase, facts: Mapping[str, Any] | None = None
) -> SessionError:
    """Make the error of an error result, psycopg's error for it as the ``__cause__``.

    Facts that the result adds: ``message`` (the primary text), ``severity`` (never translated),
    ``detail``, ``hint``, ``context`` and ``source_file``, each only where the server sent it.

    Args:
        result: a PGresult whose status is an error. One that libpq made up itself has no fields:
            the connection is lost, and the fact ``eof`` says so.
        phase: where in the session's life it came.
        facts: more facts to carry.
    """
    sqlstate = _field(result, DiagnosticField.SQLSTATE)
    message = _field(result, DiagnosticField.MESSAGE_PRIMARY)
    seen: dict[str, Any] = {
        name: value for name, code in _DIAGNOSTICS.items() if (value := _field(result, code))
    }
    if sqlstate is None and message is None:
        seen["eof"] = True
        message = first_line(result.get_error_message("utf-8"))
    error = SessionError(
        first_line(message or "the server reported an error without a message"),
        phase=phase,
        sqlstate=sqlstate,
        routine=_field(result, DiagnosticField.SOURCE_FUNCTION),
        facts={**seen, "message": message, **(facts or {})},
    )
    error.__cause__ = pg_errors.error_from_result(result)
    return error


def lost(
    phase: Phase, cause: psycopg.Error, facts: Mapping[str, Any] | None = None
) -> SessionError:
    """Make the error of a connection that ended without a word from the server.

    A crash, an immediate stop, wal_sender_timeout and a reset all look like this; the fact ``eof``
    is True.
    """
    # psycopg sets "consuming input failed: " and the like before libpq's words.
    words = first_line(str(cause)).rpartition("failed: ")[2]
    error = SessionError(
        f"the connection was lost: {words}",
        phase=phase,
        facts={"eof": True, "message": words, **(facts or {})},
    )
    error.__cause__ = cause
    return error


def first_line(text: str) -> str:
    """Cut a text to its first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _field(result: PGresult, code: DiagnosticField) -> str | None:
    value = result.error_field(code)
    return None if value is None else value.decode("utf-8", "replace")
