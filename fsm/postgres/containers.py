"""Arrays, ranges and multiranges: their text -> lists and psycopg's Range and Multirange.

Each function makes a converter out of the converter of what is contained. A None stands for the
types that stay text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from fsm.postgres.markers import OutOfRange

Converter: TypeAlias = Callable[[str], Any]
"""Takes the text of one value, returns the Python value or raises ValueError."""

MAX_DIMENSIONS: Final = 6
"""Dimensions that an array can have (MAXDIM of the server)."""

# What array_isspace and range_in take for space: an item that has any is quoted.
_SPACE = r" \t\n\r\v\f"
_BOUNDS = re.compile(r"(?:\[[+-]?[0-9]+:[+-]?[0-9]+\])+=")


# One dimension, nothing quoted: by far the commonest, and split does it.
_FLAT = re.compile(rf'\{{[^{_SPACE}"\\{{}}]+\}}')


class _ArraySyntax(NamedTuple):
    delimiter: str
    item: re.Pattern[str]
    """One item: what stands between quotes, or what stands without them."""


def _array_syntax(delimiter: str) -> _ArraySyntax:
    plain = rf'[^{_SPACE}"\\{{}}{delimiter}]+'
    return _ArraySyntax(delimiter, re.compile(rf'"([^"\\]*(?:\\.[^"\\]*)*)"|({plain})', re.DOTALL))


_COMMA = _array_syntax(",")
_SEMICOLON = _array_syntax(";")


def array_of(convert: Converter | None) -> Converter:
    """Make the converter of arrays whose elements ``convert`` reads (Postgres docs, "Arrays").

    Returns:
        A converter that returns a list, nested for more dimensions, with None for NULL. An array
        whose first index is not 1 becomes ``OutOfRange``: a list has no place for the index.
    """
    return _array_converter(_COMMA, convert)


def array_of_boxes() -> Converter:
    """Make the converter of arrays of type box, the one whose delimiter is a semicolon."""
    return _array_converter(_SEMICOLON, None)


def _array_converter(syntax: _ArraySyntax, convert: Converter | None) -> Converter:
    def read(text: str) -> list[Any] | OutOfRange:
        if _FLAT.fullmatch(text):
            return _flat_items(text[1:-1].split(syntax.delimiter), convert)
        if text == "{}":
            return []
        bounds = _BOUNDS.match(text)
        start = bounds.end() if bounds else 0
        items, _, end = _read_array(syntax, convert, text, start, MAX_DIMENSIONS)
        if end != len(text):
            raise ValueError("more than an array")
        return OutOfRange(text) if bounds else items

    return read


def _flat_items(texts: list[str], convert: Converter | None) -> list[Any]:
    if "" in texts:
        raise ValueError("no array")
    if convert is None:
        return [None if text == "NULL" else text for text in texts]
    return [None if text == "NULL" else convert(text) for text in texts]


def _read_array(
    syntax: _ArraySyntax, convert: Converter | None, text: str, at: int, dimensions: int
) -> tuple[list[Any], tuple[int, ...], int]:
    """Read the array that begins at ``at``: its items, its lengths by dimension, its end."""
    if not dimensions or not text.startswith("{", at):
        raise ValueError("no array")
    items: list[Any] = []
    shapes: set[tuple[int, ...]] = set()
    while True:
        # Past the brace at first, past a delimiter later on.
        at += 1
        item: Any
        shape: tuple[int, ...] = ()
        if text.startswith("{", at):
            item, shape, at = _read_array(syntax, convert, text, at, dimensions - 1)
        else:
            item, at = _read_item(syntax, convert, text, at)
        items.append(item)
        shapes.add(shape)
        end = text[at : at + 1]
        if end == "}":
            break
        if end != syntax.delimiter:
            raise ValueError("no array")
    if len(shapes) > 1:
        raise ValueError("an array of arrays that differ in their lengths")
    return items, (len(items), *shapes.pop()), at + 1


def _read_item(
    syntax: _ArraySyntax, convert: Converter | None, text: str, at: int
) -> tuple[Any, int]:
    found = syntax.item.match(text, at)
    if found is None:
        raise ValueError("no array")
    quoted, plain = found.groups()
    if plain == "NULL":
        return None, found.end()
    item = plain if quoted is None else _unescaped(quoted)
    return (item if convert is None else convert(item)), found.end()


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    # A document escapes each of its quotes, and a pattern would take several times as long.
    return "\\".join(part.replace("\\", "") for part in text.split("\\\\"))


_BOUND = rf'("[^"\\]*(?:(?:""|\\.)[^"\\]*)*"|[^{_SPACE}"\\()\[\],]+)?'
_RANGE = re.compile(rf"([\[(]){_BOUND},{_BOUND}([\])])", re.DOTALL)
_ESCAPED_IN_BOUND = re.compile(r'\\(.)|"(")', re.DOTALL)


def range_of(convert: Converter | None) -> Converter:
    """Make the converter of ranges whose bounds ``convert`` reads (Postgres docs, "Range Types").

    Returns:
        A converter that returns a ``psycopg.types.range.Range``; a bound is None where there is
        none. It is not the bound ``infinity`` that dates and times have: that is ``OutOfRange``.
    """

    def read(text: str) -> Range[Any]:
        if text == "empty":
            return Range(empty=True)
        found = _RANGE.fullmatch(text)
        if found is None:
            raise ValueError("no range")
        return _range(found, convert)

    return read


def multirange_of(convert: Converter | None) -> Converter:
    """Make the converter of multiranges whose ranges have bounds that ``convert`` reads.

    Returns:
        A converter that returns a ``psycopg.types.multirange.Multirange``, a list of ranges.
    """

    def read(text: str) -> Multirange[Any]:
        ranges: list[Range[Any]] = []
        if text == "{}":
            return Multirange(ranges)
        at = 0
        while text.startswith("," if at else "{", at):
            found = _RANGE.match(text, at + 1)
            if found is None:
                break
            ranges.append(_range(found, convert))
            at = found.end()
        if not at or text[at:] != "}":
            raise ValueError("no multirange")
        return Multirange(ranges)

    return read


def _range(found: re.Match[str], convert: Converter | None) -> Range[Any]:
    left, lower, upper, right = found.groups()
    return Range(_bound(lower, convert), _bound(upper, convert), left + right)


def _bound(text: str | None, convert: Converter | None) -> Any:
    if text is None:
        return None
    if text[0] == '"':
        text = _ESCAPED_IN_BOUND.sub(r"\1\2", text[1:-1])
    return text if convert is None else convert(text)
