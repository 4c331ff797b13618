"""The JSON Schema that editors check states.yaml with."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from fsm.machine.schema import GENERATED, json_schema
from fsm.machine.spec import STATES
from tests.support.world import edited

SCHEMA: dict[str, Any] = json.loads(GENERATED.read_text(encoding="utf-8"))


def complaints(text: str) -> list[str]:
    """Give where the schema refuses a file, as dotted paths."""
    errors = Draft202012Validator(SCHEMA).iter_errors(yaml.safe_load(text))
    return [".".join(map(str, error.absolute_path)) for error in errors]


def test_the_generated_file_is_fresh() -> None:
    assert GENERATED.read_text(encoding="utf-8") == json_schema() + "\n"


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_shipped_file_names_it_and_is_accepted() -> None:
    text = edited()
    assert text.startswith(f"# yaml-language-server: $schema=fsm/machine/{GENERATED.name}\n")
    assert complaints(text) == []


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("version: 1", "version: 1\nverison: 1", ""),
        ("version: 1", "version: 2", "version"),
        ('{from: host, about: "begin"', '{form: host, about: "begin"', "events.start"),
        ("after: 60,", "after: soon,", "states.Acquiring.timers.acquire_timeout.after"),
        ("after: 60,", "afer: 60,", "states.Acquiring.timers.acquire_timeout"),
        ("when: lock_held}", "when: if lock_held}", "transitions."),
        ("when: lock_held}", "when: 3}", "transitions."),
        ("max_delay: 15}", "max_dealy: 15}", "policies.error_retry.by_class.server_starting_or_s"),
        ("  Failed:\n", "  Gone:\n", "states"),
        ("source: Idle", "source: Asleep", "transitions.0.source"),
        ("source: Idle", "source: []", "transitions.0.source"),
        ("do: [take_lock]", "do: take_lock", "transitions.1.do"),
        ("blame: {error_retry: hot_loop}", "blame: {error_fail: hot_loop}", "transitions."),
    ],
)
def test_what_the_loader_refuses_by_its_shape_the_schema_refuses(
    old: str, new: str, where: str
) -> None:
    found = complaints(edited((old, new)))
    assert found
    assert all(path.startswith(where) for path in found), found


def test_sources_may_be_one_state_or_several() -> None:
    assert complaints(edited(("source: Idle", "source: [Idle, Failed]"))) == []


def test_the_senders_key_is_spelled_from() -> None:
    event = SCHEMA["$defs"]["Event"]
    assert "from" in event["properties"]
    assert "sender" not in event["properties"]
    assert event["required"] == ["from"]


def test_editors_can_complete_the_states() -> None:
    assert SCHEMA["properties"]["states"]["propertyNames"]["enum"] == list(STATES)
