"""The sentences of a verdict: templates with placeholders, filled with what is known."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Final, NamedTuple


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


def check(template: str) -> None:
    """Refuse a template that could not be filled in.

    Raises:
        ValueError: it is malformed, or names a placeholder that there is not.
    """
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


def fill(template: str, words: Mapping[str, object]) -> str:
    """Fill in what is known, and a neutral phrase for what is not.

    Args:
        template: one that ``check`` let pass.
        words: values by fact.
    """
    return template.format_map({name: _word(phrase, words) for name, phrase in _PHRASES.items()})


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
