"""Reads a rules file, strictly: every problem at once, each with file, line and column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Final

from pydantic import ValidationError

from fsm.errors import BadInput
from fsm.postgres.rule_table import RuleTable, clashes
from fsm.postgres.rules import Rule, RulesFile
from fsm.strict_yaml import Document, Path, Position, Problem, read, refusal

SHIPPED: Final = FilePath(__file__).with_name("errors.yaml")


def load(path: FilePath) -> tuple[Rule, ...]:
    """Read rules from a file.

    Raises:
        BadInput: the file cannot be read.
        SpecError: with all problems, each with file, line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the rules file '{path}': {error}") from error
    return parse(text, str(path))


def parse(text: str, name: str = "errors.yaml") -> tuple[Rule, ...]:
    """Read rules from YAML text.

    Args:
        text: YAML, as in the shipped errors.yaml.
        name: what to call the file in problems.

    Raises:
        SpecError: with all problems, each with file, line and column.
    """
    document = read(text, name)
    if document is None or not isinstance(document.data, dict):
        raise refusal(name, [((1, 1), "the file should begin with 'version: 1'")])
    rules, problems = _validate(document)
    if problems := [*document.problems, *problems]:
        raise refusal(name, problems)
    return rules


def _validate(document: Document) -> tuple[tuple[Rule, ...], list[Problem]]:
    try:
        rules = RulesFile.model_validate(document.data).all()
    except ValidationError as error:
        found = [(document.where(item["loc"]), item) for item in error.errors()]
        return (), [
            (where, _describe(item, document.data))
            for where, item in found
            if where not in document.unread or item["type"] == "missing"
        ]
    where = _positions(document)
    return rules, [(where[id_], what) for id_, what in _problems(rules)]


def _positions(document: Document) -> Mapping[str, Position]:
    """Give where each rule of a valid file stands, by id: the last one, where two share it."""
    sections = {name: part for name, part in document.data.items() if isinstance(part, list)}
    return {
        rule["id"]: document.where((name, index, "id"))
        for name, section in sections.items()
        for index, rule in enumerate(section)
    }


def _problems(rules: Sequence[Rule]) -> Iterator[tuple[str, str]]:
    clashing = list(clashes(rules))
    for rule, what in clashing:
        yield rule.id, f"rule '{rule.id}': {what}"
    if clashing:
        return
    for rule in RuleTable(rules).unreachable():
        yield rule.id, f"rule '{rule.id}' can never decide: others always come before it"


def _describe(item: Any, data: Any) -> str:
    path: Path = tuple(item["loc"])
    return _named(path, data) + _problem(item, path)


def _named(path: Path, data: Any) -> str:
    try:
        return f"rule '{data[path[0]][path[1]]['id']}': "
    except (IndexError, KeyError, TypeError):
        return ""


def _problem(item: Any, path: Path) -> str:
    key = next((part for part in reversed(path) if isinstance(part, str)), "the file")
    match item["type"]:
        case "extra_forbidden":
            return f"unknown key '{key}'"
        case "missing":
            return f"'{key}' is missing"
        case "value_error":
            return str(item["ctx"]["error"])
        case "literal_error":
            return f"{key}: '{item['input']}' is not one of {item['ctx']['expected']}"
        case _:
            return f"{key}: {item['msg'][0].lower()}{item['msg'][1:]}"
