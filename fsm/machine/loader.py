"""Reads a machine file, strictly: every problem at once, each with file, line and column."""

from __future__ import annotations

from functools import cache
from pathlib import Path as FilePath
from typing import Any, Final

from pydantic import ValidationError

from fsm.errors import BadInput
from fsm.machine.spec import Path, Spec, problems
from fsm.strict_yaml import Document, Position, Problem, read, refusal

SHIPPED: Final = FilePath(__file__).parent.parent / "states.yaml"
"""Where a wheel carries the file."""
CHECKED_OUT: Final = FilePath(__file__).parent.parent.parent / "states.yaml"
"""Where it stands in the repository, which an editable install reads."""


def parse(text: str, name: str = "states.yaml") -> Spec:
    """Read a machine from text.

    Args:
        text: YAML.
        name: what to call the file in problems.

    Raises:
        SpecError: with all problems.
    """
    document = read(text, name)
    if document is None:
        raise refusal(name, [((1, 1), "the file is empty; it should describe a machine")])
    spec, found = _validate(document)
    found = [*document.problems, *found]
    if spec is not None:
        found += [(document.where(path), what) for path, what in problems(spec)]
    if spec is None or found:
        raise refusal(name, found)
    return spec


def _validate(document: Document) -> tuple[Spec | None, list[Problem]]:
    data = document.data
    try:
        return Spec.model_validate(data), []
    except ValidationError as error:
        wrong = [item for item in error.errors() if not _is_beside_the_point(item, data)]
        found = [(item, *_located(document, item)) for item in wrong]
        return None, [
            (where, what)
            for item, where, what in found
            if where not in document.unread or item["type"] == "missing"
        ]


def _is_beside_the_point(item: Any, data: Any) -> bool:
    """Is this said only because of another problem, or about a form that was not meant?"""
    if item["type"] == "too_short":
        return bool(len(item["input"]) >= item["ctx"]["min_length"])
    if _path_in(data, item["loc"]) == item["loc"]:
        return False
    not_meant = "float_type" if isinstance(item["input"], dict) else "model_type"
    return bool(item["type"] == not_meant)


def _path_in(data: Any, loc: Path) -> Path:
    """Give a path without the parts that name pydantic's own types and not what stands there."""
    path: list[str | int] = []
    for part in loc:
        if part in (data if isinstance(data, dict) else range(_length(data))):
            data = data[part]
            path.append(part)
    return tuple(path)


def _length(data: Any) -> int:
    return len(data) if isinstance(data, list) else 0


def _located(document: Document, item: Any) -> tuple[Position, str]:
    path = _path_in(document.data, item["loc"])
    at_key = item["type"] == "extra_forbidden" or item["loc"][-1:] == ("[key]",)
    where = document.keys[path] if at_key else document.where(path)
    return where, _describe(item, path)


def _describe(item: Any, path: Path) -> str:
    match item["type"]:
        case "extra_forbidden":
            return f"unknown key '{path[-1]}'"
        case "missing":
            return f"'{item['loc'][-1]}' is missing"
        case "value_error":
            what = str(item["ctx"]["error"])
        case "literal_error":
            what = f"'{item['input']}' is not {_one_of(item['ctx']['expected'])}"
        case kind:
            what = f"{_shown(item['input'])} is not {_EXPECTED.get(kind, 'what belongs here')}"
            what = what.format_map(item.get("ctx", {}))
    return f"{'.'.join(map(str, path)) or 'the file'}: {what}"


_EXPECTED: Final = {
    "string_type": "text",
    "model_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "as long as it should be: {min_length} or more",
    "too_long": "as short as it should be: {max_length} at most",
}
"""What belongs there, by pydantic's name for the error."""


def _one_of(expected: str) -> str:
    return f"one of {expected}" if " or " in expected else expected


def _shown(value: Any) -> str:
    """Name a value of the file in few words; braces doubled, since a format follows."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'".replace("{", "{{").replace("}", "}}")


def load(path: FilePath) -> Spec:
    """Read a machine from a file.

    Raises:
        BadInput: the file cannot be read.
        SpecError: with all problems.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the machine file '{path}': {error}") from error
    return parse(text, str(path))


def shipped_path() -> FilePath:
    """Give the path of the machine file that slotkeeper ships."""
    return SHIPPED if SHIPPED.exists() else CHECKED_OUT


@cache
def shipped() -> Spec:
    """Give the machine that slotkeeper ships."""
    return load(shipped_path())
