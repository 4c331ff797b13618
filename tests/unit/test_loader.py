"""The loader: what a machine file may not say, and where each problem stands."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from fsm.errors import BadInput, SpecError
from fsm.machine.engine import Engine
from fsm.machine.loader import load, parse, shipped, shipped_path
from fsm.machine.spec import STATES
from tests.support.world import dice, edited, machine

HERE = "@@"
"""Stands in an edit where a problem is expected; taken out before the file is read."""

Edit = tuple[str, str]


def marked(*edits: Edit) -> tuple[str, list[str]]:
    """Give the edited file, and the places that its marks stand at, in order."""
    text, places = edited(*edits), []
    while (at := text.find(HERE)) >= 0:
        line = text.count("\n", 0, at) + 1
        places.append(f"m.yaml:{line}:{at - text.rfind(chr(10), 0, at)}")
        text = text[:at] + text[at + len(HERE) :]
    return text, places


def problems_of(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse(text, "m.yaml")
    return list(caught.value.problems)


def place_of(problem: str) -> str:
    found = re.match(r"m\.yaml:\d+:\d+(?=: )", problem)
    assert found, problem
    return found.group()


ACQUIRE = "{after: 60, trigger: acquire_timed_out}"
BEGIN = (
    "{id: begin,                   source: Idle,       trigger: start,             dest: Locking"
)
FIRST_IGNORED = "ignore: [stop, retry_now, reset"
IDLE = "about: nothing open, nothing owed"
STOPPING = "server_starting_or_stopping: {max_delay: 15}"

SHAPES = {
    "an unknown top key": (("version: 1", "version: 1\n@@verison: 1"), "unknown key 'verison'"),
    "an unknown key of a row": ((BEGIN, BEGIN.replace("dest", "@@dst")), "unknown key 'dst'"),
    "an unknown key of an event": (
        ("start:             {from: host", "start:             {@@form: host, from: host"),
        "unknown key 'form'",
    ),
    "a key that stands twice": (
        ("version: 1", "version: 1\n@@version: 1"),
        "key 'version' stands here twice; the first is in line ",
    ),
    "a name that is declared twice": (
        ("  work_proven: the", "  @@lock_held: again\n  work_proven: the"),
        "key 'lock_held' stands here twice; the first is in line ",
    ),
    "on as a key": (
        ("  start:             {from", "  @@on: {from: host}\n  start:             {from"),
        "key 'on' means true in YAML 1.1; use another word, or quote it",
    ),
    "a number as a key": (
        ("version: 1", "version: 1\n@@7: 1"),
        "a key here is a plain word",
    ),
    "a merge key": (("version: 1", "version: 1\n@@<<: {a: 1}"), "'<<' is not read here"),
    "a version to come": (("version: 1", "version: @@2"), "version: '2' is not 1"),
    "a word for seconds": (
        (ACQUIRE, ACQUIRE.replace("60", "@@soon")),
        "states.Acquiring.timers.acquire_timeout.after: 'soon' is not a number",
    ),
    "yes for seconds": (
        (ACQUIRE, ACQUIRE.replace("60", "@@yes")),
        "states.Acquiring.timers.acquire_timeout.after: true is not a number",
    ),
    "less than no time": (
        (ACQUIRE, ACQUIRE.replace("60", "@@-1")),
        "states.Acquiring.timers.acquire_timeout.after: '-1' is not at least 0",
    ),
    "an endless time": (
        (ACQUIRE, ACQUIRE.replace("60", "@@.inf")),
        "states.Acquiring.timers.acquire_timeout.after: 'inf' is not a finite number",
    ),
    "more than the lease": (
        (ACQUIRE, ACQUIRE.replace("60", "{of_lease: @@1.5}")),
        "states.Acquiring.timers.acquire_timeout.after.of_lease: '1.5' is not at most 1",
    ),
    "a timer without a length": (
        (ACQUIRE, "@@{trigger: acquire_timed_out}"),
        "a timer needs 'after' (seconds, or null for off) or 'policy'",
    ),
    "a timer with two lengths": (
        (ACQUIRE, "@@{after: 60, policy: of_error, trigger: acquire_timed_out}"),
        "a timer has either 'after' or 'policy', not both",
    ),
    "a shortening to nothing": (
        ("shorten: 0.25", "shorten: @@1"),
        "states.Locking.timers.lock_slice.shorten: '1' is not below 1",
    ),
    "a number of retries that is a truth": (
        ("max_retries: 3}\n      handler", "max_retries: @@true}\n      handler"),
        "policies.error_retry.by_class.auth.max_retries: true is not a whole number",
    ),
    "a part of a retry": (
        ("max_retries: 3}\n      handler", "max_retries: @@2.5}\n      handler"),
        "policies.error_retry.by_class.auth.max_retries: '2.5' is not a whole number",
    ),
    "a delay of nothing": (
        ("    initial_delay: 0.5", "    initial_delay: @@0"),
        "policies.error_retry.initial_delay: '0' is not above 0",
    ),
    "a factor that shrinks": (
        ("    factor: 2", "    factor: @@0.5"),
        "policies.error_retry.factor: '0.5' is not at least 1",
    ),
    "a jitter that is none of the four": (
        ("    jitter: full", "    jitter: @@wild"),
        "policies.error_retry.jitter: 'wild' is not one of 'none', 'full', 'equal' or 'decorrel",
    ),
    "null where nothing can be unlimited": (
        (STOPPING, STOPPING.replace("15", "@@null")),
        "null says nothing here; leave the key out to keep the policy's own",
    ),
    "text where a list belongs": (
        (
            "trigger: session_opened,                      do: [take_lock]",
            "trigger: session_opened,                      do: @@take_lock",
        ),
        "transitions.1.do: 'take_lock' is not a list",
    ),
    "a list where text belongs": ((IDLE, "about: @@[nothing]"), "states.Idle.about: a list is not"),
    "null where text belongs": ((IDLE, "about: @@null"), "states.Idle.about: null is not text"),
    "a mapping where a truth belongs": (
        ("quiet: true", "quiet: @@{really: true}"),
        "quiet: a mapping is not true or false",
    ),
    "a list where a mapping belongs": (
        (STOPPING, "server_starting_or_stopping: @@[15]"),
        "policies.error_retry.by_class.server_starting_or_stopping: a list is not a mapping",
    ),
    "a row without any source": (
        (BEGIN, BEGIN.replace("source: Idle", "source: @@[]")),
        "transitions.0.source: a list is not as long as it should be: 1 or more",
    ),
    "a row that blames two": (
        ("blame: {error_retry: hot_loop}", "blame: @@{error_retry: auth, error_wait: auth}"),
        "blame: a mapping is not as short as it should be: 1 at most",
    ),
    "a row without an id": (
        ("{id: begin,                   source", "@@{source"),
        "'id' is missing",
    ),
    "a sender that there is not": (
        ("start:             {from: host", "start:             {from: @@user"),
        "events.start.from: 'user' is not one of 'host', 'session', 'timer', 'governor' or",
    ),
    "a name that is no name": (
        ("  lock_held: the", "  @@lock-held: the"),
        "facts.lock-held: a name is made of letters, digits and underscores and begins with a",
    ),
    "a condition of too many words": (
        ("when: lock_held}", "when: @@if lock_held}"),
        "a condition is a fact, or 'not' and a fact",
    ),
    "a condition that is a number": (
        ("when: lock_held}", "when: @@3}"),
        "a condition is a fact, or 'not' and a fact",
    ),
    "a state that there is not": (
        ("  Failed:\n", "  @@Gone:\n"),
        "states.Gone: 'Gone' is not one of 'Idle', 'Locking', 'Acquiring', 'Streaming', 'Backing",
    ),
    "a source that is no state": (
        (BEGIN, BEGIN.replace("Idle", "@@Asleep")),
        "transitions.0.source: 'Asleep' is not one of 'Idle'",
    ),
    "a policy that there is not": (
        ("  error_wait:\n    initial_delay", "  @@error_later:\n    initial_delay"),
        "policies.error_later: 'error_later' is not one of 'error_retry', 'error_retry_long' or",
    ),
    "a date that does not exist": (
        (IDLE, "about: @@2024-13-45"),
        "'2024-13-45' cannot be read as timestamp; quote it if it is text",
    ),
    "a tag of one's own": ((IDLE, "about: @@!mine text"), "'text' cannot be read as !mine"),
    "a number that is tagged and none": (
        (IDLE, "about: @@!!int soon"),
        "'soon' cannot be read as int; quote it if it is text",
    ),
    "an alias inside of itself": (
        (IDLE, "about: @@&a [*a]"),
        "an alias in here points at what contains it",
    ),
    "an alias inside of itself, two levels down": (
        (IDLE, "about: @@&a [{deeper: *a}]"),
        "an alias in here points at what contains it",
    ),
    "an alias for nothing": (
        (IDLE, "about: @@*nothing"),
        "not YAML: found undefined alias",
    ),
    "a bracket that stays open": (
        ("requires: [session_open, lock_held]\n", "requires: [session_open, lock_held\n"),
        "not YAML: ",
    ),
}


@pytest.mark.parametrize("case", SHAPES)
def test_what_has_a_wrong_shape_is_named_where_it_stands(case: str) -> None:
    edit, what = SHAPES[case]
    text, places = marked((edit[0], edit[1]))
    found = problems_of(text)
    assert len(found) == 1, found
    assert what in found[0]
    assert not places or place_of(found[0]) == places[0]


NAMES = {
    "an unknown event of an action": (
        ("answers: [session_opened]", "answers: [@@session_open]"),
        "unknown event 'session_open'; known are: acquire_timed_out, answer_overdue",
    ),
    "an unknown fact that an action clears": (
        ("clears: [session_open,", "clears: [@@session_closed,"),
        "unknown fact 'session_closed'; known are: lock_held, session_open",
    ),
    "an unknown fact that an event sets": (
        ("sets: [slot_checked]", "sets: [@@slot_seen]"),
        "unknown fact 'slot_seen'",
    ),
    "an unknown timer that paces": (
        ("paced_by: lock_slice", "paced_by: @@lock_slices"),
        "unknown timer 'lock_slices'; known are: acquire_timeout, backoff, connect_timeout",
    ),
    "an unknown class of a policy": (
        (STOPPING, "server_gone: @@{max_delay: 15}"),
        "unknown class 'server_gone'; known are: auth, configuration",
    ),
    "an unknown fact that a state requires": (
        ("requires: [session_open, lock_held]", "requires: [session_open, @@lock]"),
        "unknown fact 'lock'",
    ),
    "an unknown event that is ignored": (
        (FIRST_IGNORED, FIRST_IGNORED.replace("[", "[@@halt, ")),
        "unknown event 'halt'",
    ),
    "an unknown event of a timer": (
        (ACQUIRE, ACQUIRE.replace("acquire_timed", "@@acquire_time")),
        "unknown event 'acquire_time_out'",
    ),
    "an unknown event of a budget": (
        ("exhausted: budget_spent", "exhausted: @@budget_gone"),
        "unknown event 'budget_gone'",
    ),
    "an unknown condition of a timer": (
        ("when: not work_proven", "when: @@not work_done"),
        "unknown fact 'work_done'",
    ),
    "an unknown condition of a row": (
        ("do: [inspect_slot],  when: lock_held}", "do: [inspect_slot],  when: @@locked}"),
        "unknown fact 'locked'",
    ),
    "an unknown action": (
        (BEGIN + ",    do: [open", BEGIN + ",    do: [@@opens"),
        "unknown action 'opens_session'; known are: check_silence, check_work",
    ),
    "an unknown timer to restart": (
        ("restart: [lock_slice]", "restart: [@@backoff]"),
        "unknown timer of this state 'backoff'; known are: connect_timeout, lock_slice, waiting",
    ),
    "an unknown class to blame": (
        ("blame: {error_retry: hot_loop}", "blame: {error_retry: @@hot}"),
        "unknown class 'hot'",
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_that_is_nowhere_declared_is_named_with_those_that_are(case: str) -> None:
    edit, what = NAMES[case]
    text, places = marked(edit)
    found = [problem for problem in problems_of(text) if place_of(problem) == places[0]]
    assert len(found) == 1
    assert what in found[0]


def test_an_unknown_trigger_of_a_row_is_named() -> None:
    text, places = marked((BEGIN, BEGIN.replace("trigger: start", "trigger: @@launch")))
    assert f"{places[0]}: unknown event 'launch'; known are: " in problems_of(text)[-1]


def before(row: str, added: str) -> Edit:
    """Give the edit that adds a row before another one, and expects a problem there."""
    return (f"  - {{id: {row}, ", f"  - @@{added}\n  - {{id: {row}, ")


SENSE = {
    "an initial delay above the longest": (
        ("  error_retry:\n    initial_delay: 0.5", "  error_retry:\n    @@initial_delay: 31"),
        "initial_delay 31 is above max_delay 30; raise max_delay or lower initial_delay",
    ),
    "an initial delay above the longest of its class": (
        (STOPPING, STOPPING.replace("{max_delay: 15", "@@{max_delay: 0.2")),
        "initial_delay 0.5 is above max_delay 0.2; raise max_delay or lower initial_delay",
    ),
    "two rows of one id": (
        ("{id: session_is_open, ", "{id: @@begin, "),
        "two rows have the id 'begin'; an id names one row and its test",
    ),
    "a row like another": (
        before("session_is_open", "{id: again, source: Idle, trigger: start}"),
        "row 'again' can never fire: row 'begin' has the same source, trigger and condition",
    ),
    "a row like another in one of its sources": (
        before("session_is_open", "{id: again, source: [Idle, Failed], trigger: start}"),
        "row 'again' can never fire: row 'begin' has the same source, trigger and condition",
    ),
    "a condition after a row without one": (
        before("session_is_open", "{id: late, source: Idle, trigger: start, when: lock_held}"),
        "row 'late' can never fire: before it, 'begin' decide every case in Idle",
    ),
    "a row after both conditions": (
        before(
            "acquire_now", "{id: late, source: BackingOff, trigger: backoff_elapsed, dest: Idle}"
        ),
        "row 'late' can never fire: before it, 'back_to_acquiring' and 'back_to_locking' decide",
    ),
    "a pair that is not decided": (
        ("ignore: [stop, retry_now, reset,", "ignore: [stop, retry_now,"),
        "Idle does not decide 'reset'; add a row for it, or put reset into the state's 'ignore'",
    ),
    "a pair that is half decided": (
        (
            "{id: back_to_locking,         source: BackingOff, trigger: backoff_elapsed",
            "{id: back_to_locking,         source: Failed, trigger: start",
        ),
        "BackingOff does not decide 'backoff_elapsed'; add a row for it",
    ),
    "a pair that is ignored and handled": (
        (FIRST_IGNORED, FIRST_IGNORED.replace("[", "[start, ")),
        "'start' is ignored in Idle, yet row 'begin' reacts to it",
    ),
    "an event with a name of the engine's": (
        ("  start:             {from", "  state: @@{from: host}\n  start:             {from"),
        "an event cannot be named 'state': the engine uses that name itself",
    ),
}


@pytest.mark.parametrize("case", SENSE)
def test_what_makes_no_sense_is_named_where_it_stands(case: str) -> None:
    edit, what = SENSE[case]
    text, places = marked((edit[0], edit[1]))
    found = [problem for problem in problems_of(text) if what in problem]
    assert len(found) == 1, problems_of(text)
    if case.startswith("an initial delay above the longest") and "class" not in case:
        assert place_of(found[0]) == place_of_key(text, "  error_retry:\n")
    elif places:
        assert place_of(found[0]) == places[0]


def place_of_key(text: str, line: str) -> str:
    """Give where the value of a key stands that is written on the line after it."""
    value = text.index(line) + len(line)
    while text[value] in " \n":
        value += 1
    return f"m.yaml:{text.count(chr(10), 0, value) + 1}:{value - text.rfind(chr(10), 0, value)}"


@pytest.mark.parametrize("state", STATES)
def test_a_state_that_is_missing_is_named(state: str) -> None:
    lines = edited().splitlines(keepends=True)
    first = lines.index(f"  {state}:\n")
    last = next(i for i in range(first + 1, len(lines)) if not lines[i].startswith("   "))
    text = "".join(lines[:first] + lines[last:])
    missing = f"state '{state}' is missing; the six states are Idle, Locking, Acquiring, Streaming,"
    found = [problem for problem in problems_of(text) if missing in problem]
    assert [place_of(problem) for problem in found] == [place_of_key(text, "\nstates:\n")]


def test_a_policy_that_is_missing_is_named() -> None:
    text = edited()
    start = text.index("  error_wait:\n    initial_delay")
    text = text[:start] + text[text.index("\nstates:\n") :]
    place = place_of_key(text, "\npolicies:\n")
    assert problems_of(text) == [f"{place}: policy 'error_wait' is missing"]


def test_top_keys_that_are_missing_are_all_named() -> None:
    found = problems_of("version: 1\n")
    assert found == [
        f"m.yaml:1:1: '{key}' is missing"
        for key in ("actions", "classes", "events", "facts", "policies", "states", "transitions")
    ]


def test_every_name_that_the_engine_uses_on_its_model_is_refused_as_an_event() -> None:
    engine = Engine(shipped(), random=dice(1), lease=10.0)
    used = {name for name in dir(engine._position) if not name.startswith("_")}
    for name in used - set(shipped().events):
        text, places = marked(("\n  start: ", f"\n  {name}: @@{{from: host}}\n  start: "))
        refused = f"{places[0]}: an event cannot be named '{name}': the engine uses that name"
        assert any(problem.startswith(refused) for problem in problems_of(text)), name


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n"])
def test_an_empty_file_is_told_from_a_wrong_one(text: str) -> None:
    assert problems_of(text) == ["m.yaml:1:1: the file is empty; it should describe a machine"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a\n", "m.yaml:1:1: the file: a list is not a mapping of keys to values"),
        ("5", "m.yaml:1:1: the file: '5' is not a mapping of keys to values"),
        ("a: 1\nb: [1,\n", "m.yaml:3:1: not YAML: "),
        ("a: 1\n\tb: 1\n", "m.yaml:2:1: not YAML: "),
        ("a: 1\nb: c: d\n", "m.yaml:2:5: not YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 1\n", "m.yaml:2:1: not YAML: "),
        ("a: \x00", "m.yaml:1:1: not YAML: unacceptable character #x0000"),
    ],
)
def test_what_is_no_mapping_or_no_yaml_is_one_problem(text: str, problem: str) -> None:
    found = problems_of(text)
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    text, places = marked(
        ("version: 1", "version: 1\n@@verison: 1\n@@version: 1"),
        ("    jitter: full", "    jitter: @@wild"),
        (IDLE, "about: @@5"),
        (ACQUIRE, ACQUIRE.replace("60", "@@soon").replace("}", ", @@often: true}")),
        (BEGIN, BEGIN.replace("Idle", "@@Asleep")),
    )
    assert [place_of(problem) for problem in problems_of(text)] == places


def test_all_that_makes_no_sense_is_told_at_once_with_keys_that_stand_twice() -> None:
    text, places = marked(
        ("version: 1", "version: 1\n@@version: 1"),
        ("answers: [session_opened]", "answers: [@@session_open]"),
        (STOPPING, STOPPING.replace("{max_delay: 15", "@@{max_delay: 0.2")),
        ("{id: session_is_open, ", "{id: @@begin, "),
        ("restart: [lock_slice]", "restart: [@@backoff]"),
    )
    assert [place_of(problem) for problem in problems_of(text)] == places


def test_problems_come_in_the_order_of_lines_not_of_text() -> None:
    text, _ = marked(("version: 1", "zversion: 1"), (IDLE, "about: 5"), (ACQUIRE, "7"))
    numbers = [tuple(map(int, place_of(p).split(":")[1:])) for p in problems_of(text)]
    assert len(numbers) == 4
    assert all(first <= second for first, second in pairwise(numbers))


VALUES = ("soon", "-1", "yes", "{of_lease: 3}", "{ofLease: 1}", "[1]", "{}", "null", "1.5", "''")
FIELDS = {
    "version": "version: ?",
    "facts": "facts: {lock_held: ?}",
    "answers": "actions: {ping: {about: text, answers: ?}}",
    "from": "events: {start: {from: ?}}",
    "policies": "policies: ?",
    "max_delay": "policies: {error_wait: {initial_delay: 1, max_delay: ?}}",
    "jitter": "policies: {error_wait: {initial_delay: 1, max_delay: 1, jitter: ?}}",
    "by_class": "policies: {error_wait: {by_class: {auth: {max_retries: ?}}}}",
    "states": "states: ?",
    "state": "states: {Idle: ?}",
    "requires": "states: {Idle: {about: text, requires: ?}}",
    "timer": "states: {Idle: {about: text, timers: {tick: ?}}}",
    "after": "states: {Idle: {about: text, timers: {tick: {trigger: start, after: ?}}}}",
    "shorten": "states: {Idle: {about: text, timers: {tick: {trigger: start, shorten: ?}}}}",
    "policy": "states: {Idle: {about: text, timers: {tick: {trigger: start, policy: ?}}}}",
    "repeat": "states: {Idle: {about: text, timers: {tick: {trigger: start, repeat: ?}}}}",
    "transitions": "transitions: ?",
    "row": "transitions: [?]",
    "source": "transitions: [{id: begin, trigger: start, source: ?}]",
    "dest": "transitions: [{id: begin, trigger: start, source: Idle, dest: ?}]",
    "when": "transitions: [{id: begin, trigger: start, source: Idle, when: ?}]",
    "do": "transitions: [{id: begin, trigger: start, source: Idle, do: ?}]",
    "blame": "transitions: [{id: begin, trigger: start, source: Idle, blame: ?}]",
}
"""One key of each kind; ``?`` stands for a value."""
INTERNAL = re.compile(
    r"constrained|pydantic|function-|\[key\]|input should|instance of|dictionary|tuple"
    r"|OfLease|Condition|PolicySpec|PolicyOverride|StateSpec|TypeAlias|literal|what belongs here"
)


@pytest.mark.parametrize("field", FIELDS)
def test_no_problem_speaks_of_what_the_loader_is_made_of(field: str) -> None:
    key = FIELDS[field].partition(":")[0]
    found = [p for value in VALUES for p in problems_of(FIELDS[field].replace("?", value))]
    for problem in found:
        place_of(problem)
        assert not INTERNAL.search(problem.replace("ofLease", "")), problem
    assert any(f": {key}" in problem for problem in found)


def test_the_shipped_file_loads() -> None:
    spec = load(shipped_path())
    assert tuple(spec.states) == STATES
    assert spec == shipped() == machine()


def test_a_file_is_named_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("version: 1\nwhat: 2\n", encoding="utf-8")
    with pytest.raises(SpecError, match=re.escape(f"{file}:2:1: unknown key 'what'")):
        load(file)


def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read the machine file '.*none\.yaml'"):
        load(tmp_path / "none.yaml")


def test_a_file_that_is_no_text_is_bad_input(tmp_path: Path) -> None:
    file = tmp_path / "bytes.yaml"
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(BadInput, match=r"cannot read the machine file '.*bytes\.yaml'"):
        load(file)
