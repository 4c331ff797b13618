"""The strict reader that the machine file and the rules file share."""

from __future__ import annotations

import pytest

from fsm.errors import SpecError
from fsm.strict_yaml import read


@pytest.mark.parametrize("text", ["[" * 3000, "{a: " * 900], ids=["lists", "mappings"])
def test_a_file_nested_too_deep_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^f\.yaml:1:1: not YAML: maximum recursion depth"):
        read(text, "f.yaml")


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^f\.yaml:1:1: not YAML: unacceptable character #xd800"):
        read("a: \ud800", "f.yaml")


def test_keys_and_values_are_found_where_they_stand() -> None:
    document = read("a:\n  - b: 1\n", "f.yaml")
    assert document is not None
    assert document.data == {"a": [{"b": 1}]}
    assert document.keys["a", 0, "b"] == (2, 5)
    assert document.where(("a", 0, "b")) == (2, 8)
    assert document.where(("a", 0, "b", "deeper")) == (2, 8)


def test_a_problem_is_known_where_something_could_not_be_read() -> None:
    document = read("a: 1\na: 2\non: 3\nb: 2024-13-45\n", "f.yaml")
    assert document is not None
    assert document.data == {"a": 1, "b": None}
    assert document.unread == {(2, 1), (3, 1), (4, 4)}
