"""Reads YAML strictly, and remembers where everything stands, so that problems name the place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import yaml

from fsm.errors import SpecError

Path: TypeAlias = tuple[str | int, ...]
"""Where in the data: keys, and indices from 0."""
Position: TypeAlias = tuple[int, int]
"""Where in the text: line and column, both from 1."""
Problem: TypeAlias = tuple[Position, str]


class Document:
    """Plain data, and where each of its keys and values stands.

    Keys are plain words. One that stands twice counts once, the first time.

    Attributes:
        data: dicts, lists and scalars; None stands for a scalar that cannot be read.
        keys: by path, where the key stands.
        values: by path, where the value stands.
        problems: what was left out of ``data`` or cannot be read, in any order.
    """

    def __init__(self, node: yaml.Node) -> None:
        self.keys: dict[Path, Position] = {}
        self.values: dict[Path, Position] = {}
        self.problems: list[Problem] = []
        self._plain = yaml.constructor.SafeConstructor()
        self.data = self._read(node, ())

    @property
    def unread(self) -> frozenset[Position]:
        """Where a problem is known already, so that what it leads to need not be told."""
        return frozenset(position for position, _ in self.problems)

    def where(self, path: Path) -> Position:
        """Give line and column of what stands at ``path``, or of what holds it."""
        for length in range(len(path), -1, -1):
            prefix = path[:length]
            if prefix in self.values:
                return self.values[prefix]
        return 1, 1

    def _read(self, node: yaml.Node, path: Path) -> Any:
        self.values[path] = _mark(node)
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._read(item, (*path, index)) for index, item in enumerate(node.value)]
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
            data[key] = self._read(value_node, (*path, key))
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


def read(text: str, name: str) -> Document | None:
    """Read YAML text; None where there is nothing in it.

    Args:
        text: one YAML document.
        name: what to call the file in problems.

    Raises:
        SpecError: it is not YAML, or an alias in it points at what contains it.
    """
    try:
        node = _parse_quickly(text) or yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None or node.value == "":
            return None
        looped = _find_cycle(node, frozenset())
        if looped is None:
            return Document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise refusal(name, [(place, f"not YAML: {error.problem}")]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = f"not YAML: {' '.join(str(error).split())}"
        raise refusal(name, [((1, 1), what)]) from error
    raise refusal(name, [(_mark(looped), "an alias in here points at what contains it")])


def refusal(name: str, problems: Iterable[Problem]) -> SpecError:
    """Give the error that names all problems of a file, in the order of the file."""
    return SpecError(
        [f"{name}:{line}:{column}: {what}" for (line, column), what in sorted(problems)]
    )


def _mark(node: yaml.Node) -> Position:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _parse_quickly(text: str) -> yaml.Node | None:
    """Use libyaml, seven times as fast, where PyYAML has it.

    Its marks are the same, its words for errors are not: what it refuses is read again.
    """
    if not yaml.__with_libyaml__:
        return None
    try:
        return yaml.compose(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError):  # ValueError: half of a surrogate pair
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
