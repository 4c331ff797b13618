"""Reads a machine file, strictly: every problem at once, each with file, line and column."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path as FilePath
from typing import Any, Final

import yaml
from pydantic import ValidationError

from fsm.errors import BadInput, SpecError
from fsm.machine.spec import Path, Spec, problems

SHIPPED: Final = FilePath(__file__).parent.parent / "states.yaml"
"""Where a wheel carries the file."""
CHECKED_OUT: Final = FilePath(__file__).parent.parent.parent / "states.yaml"
"""Where it stands in the repository, which an editable install reads."""

_Marks = dict[Path, tuple[int, int]]


class _Reader:
    """Turns YAML nodes into plain data, and remembers where each key and value stands."""

    def __init__(self) -> None:
        self.keys: _Marks = {}
        self.values: _Marks = {}
        self.problems: list[tuple[tuple[int, int], str]] = []
        self._plain = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node, path: Path = ()) -> Any:
        self.values[path] = _mark(node)
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._read_scalar(node)

    def _read_scalar(self, node: yaml.Node) -> Any:
        try:
            return self._plain.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist, '!!int one'
            kind = node.tag.rpartition(":")[2]
            text = f"'{node.value}' cannot be read as {kind}; quote it if it is text"
            self.problems.append((_mark(node), text))
            return None

    def _read_mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._read_key(key_node)
            if key is None:
                continue
            if key in data:
                line = self.keys[*path, key][0]
                self.problems.append(
                    (_mark(key_node), f"key '{key}' stands here twice; the first is in line {line}")
                )
                continue
            self.keys[*path, key] = _mark(key_node)
            data[key] = self.read(value_node, (*path, key))
        return data

    def _read_key(self, node: yaml.Node) -> str | None:
        if node.tag == "tag:yaml.org,2002:str" and isinstance(node, yaml.ScalarNode):
            return str(node.value)
        if node.tag == "tag:yaml.org,2002:bool":
            meant = str(self._read_scalar(node)).lower()
            text = f"key '{node.value}' means {meant} in YAML 1.1; use another word, or quote it"
        elif node.tag == "tag:yaml.org,2002:merge":
            text = "'<<' is not read here; write the keys out"
        else:
            text = "a key here is a plain word"
        self.problems.append((_mark(node), text))
        return None

    def where(self, path: Path) -> tuple[int, int]:
        """Give line and column of what stands at ``path``, or of what holds it."""
        for length in range(len(path), -1, -1):
            prefix = path[:length]
            if prefix in self.values:
                return self.values[prefix]
        return 1, 1


def _mark(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def parse(text: str, name: str = "states.yaml") -> Spec:
    """Read a machine from text.

    Args:
        text: YAML.
        name: what to call the file in problems.

    Raises:
        SpecError: with all problems.
    """
    reader = _Reader()
    data = _compose(text, name, reader)
    spec, found = _validate(data, reader)
    found = [*reader.problems, *found]
    if spec is not None:
        found += [(reader.where(path), what) for path, what in problems(spec)]
    if spec is None or found:
        raise SpecError(
            [f"{name}:{line}:{column}: {what}" for (line, column), what in sorted(found)]
        )
    return spec


def _compose(text: str, name: str, reader: _Reader) -> Any:
    try:
        node = _parse_quickly(text) or yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise SpecError([f"{name}:{line}:{column}: not YAML: {error.problem}"]) from error
    except yaml.YAMLError as error:
        raise SpecError([f"{name}:1:1: not YAML: {' '.join(str(error).split())}"]) from error
    if node is None or node.value == "":
        raise SpecError([f"{name}:1:1: the file is empty; it should describe a machine"])
    looped = _find_cycle(node, frozenset())
    if looped is not None:
        line, column = _mark(looped)
        raise SpecError([f"{name}:{line}:{column}: an alias in here points at what contains it"])
    return reader.read(node)


def _parse_quickly(text: str) -> yaml.Node | None:
    """Use libyaml, seven times as fast, where PyYAML has it.

    Its marks are the same, its words for errors are not: what it refuses is read again.
    """
    if not yaml.__with_libyaml__:
        return None
    try:
        return yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError:
        return None


def _find_cycle(node: yaml.Node, above: frozenset[int]) -> yaml.Node | None:
    if id(node) in above:
        return node
    below = above | {id(node)}
    loops = (_find_cycle(child, below) for child in _children(node))
    return next((loop for loop in loops if loop is not None), None)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.ScalarNode):
        return
    for item in node.value:
        if isinstance(item, tuple):
            yield from item
        else:
            yield item


def _validate(data: Any, reader: _Reader) -> tuple[Spec | None, list[tuple[tuple[int, int], str]]]:
    try:
        return Spec.model_validate(data), []
    except ValidationError as error:
        wrong = [item for item in error.errors() if not _is_beside_the_point(item, data)]
        unread = {where for where, _ in reader.problems}
        found = [(item, *_located(reader, item, data)) for item in wrong]
        return None, [
            (where, what)
            for item, where, what in found
            if where not in unread or item["type"] == "missing"
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


def _located(reader: _Reader, item: Any, data: Any) -> tuple[tuple[int, int], str]:
    path = _path_in(data, item["loc"])
    at_key = item["type"] == "extra_forbidden" or item["loc"][-1:] == ("[key]",)
    where = reader.keys[path] if at_key else reader.where(path)
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
