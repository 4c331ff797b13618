"""The diagram of a machine: nothing is left out, and a stranger can read it."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsm.cli import main
from fsm.errors import BadInput, SpecError
from fsm.machine import diagram
from fsm.machine.backoff import Policy
from fsm.machine.docs import PAGES, filled
from fsm.machine.loader import shipped
from fsm.machine.picture import Arrow, Box, Picture, draw
from fsm.machine.spec import STATES, Spec
from fsm.machine.words import budget, duration, growth, waiting
from fsm.postgres.errors import Classifier
from tests.support.world import edited, machine

ID = r"[A-Za-z]\w*"
ATTRIBUTES = r'\[(?:\w+=(?:<(?:[^<>]|<[^<>]*>)*>|"[^"]*"|[\w.]+)(?:, )?)+\]'
STATEMENT = re.compile(rf"(?:graph|node|edge|{ID}|{ID} -> {ID}) {ATTRIBUTES}")

EDITS = {
    "an error that only one state takes another way": (
        "trigger: error_retry_long,  dest: BackingOff, do: [close_session]}",
        "trigger: error_retry_long,  dest: Locking, do: [close_session]}",
    ),
    "a row that returns to its own state": (
        "trigger: retry_now,         dest: Acquiring,  do: [inspect_slot],  when: lock_held}",
        "trigger: retry_now,         dest: BackingOff, when: lock_held}",
    ),
    "a stop that one state ignores": (
        "source: Failed,     trigger: stop,              dest: Idle}",
        "source: Failed,     trigger: stop}",
    ),
    "no examples": (", examples: {contention: a taken slot}}", "}"),
    "words that mean something in markup": (
        "about: nothing open, nothing owed",
        "about: '\"quoted\" `ticked` *starred* _lined_ <b>bold</b> | # & 1. \\ ;'",
    ),
}


@pytest.fixture(params=["shipped", *EDITS])
def spec(request: pytest.FixtureRequest) -> Spec:
    return machine() if request.param == "shipped" else machine(EDITS[request.param])


def text(box_or_arrow: Box | Arrow) -> str:
    return " ".join(f"{line.strong} {line.plain}".strip() for line in box_or_arrow.lines)


def parts(picture: Picture) -> list[Box | Arrow]:
    return [*picture.boxes, *picture.arrows]


def arrows(picture: Picture, source: str, dest: str) -> list[Arrow]:
    return [arrow for arrow in picture.arrows if (arrow.source, arrow.dest) == (source, dest)]


def ways(picture: Picture, row: str, source: str) -> Iterator[str]:
    """Follow the arrows that bear a row from a state, or from every state, to where they end."""
    for arrow in picture.arrows:
        aside = arrow.tone == "aside"
        if row in arrow.rows and (arrow.source == source or aside):
            if arrow.dest in STATES:
                yield arrow.dest
            else:
                yield from ways(picture, row, arrow.dest)


def test_every_state_is_a_box(spec: Spec) -> None:
    names = Counter(box.name for box in draw(spec).boxes)
    assert all(names[state] == 1 for state in STATES)


def test_every_row_that_leaves_a_state_leads_by_arrows_to_its_destination(spec: Spec) -> None:
    picture = draw(spec)
    for row in spec.transitions:
        if row.dest is not None:
            for source in row.source:
                assert list(ways(picture, row.id, source)) == [row.dest], (row.id, source)


def test_every_row_that_stays_in_a_state_is_in_its_box(spec: Spec) -> None:
    boxes = {box.name: box for box in draw(spec).boxes}
    for row in spec.transitions:
        for source in row.source if row.dest is None else ():
            assert row.id in boxes[source].rows
            told = text(boxes[source])
            assert row.trigger in told or all(action in told for action in row.do), row.id


def test_every_event_of_a_row_and_every_action_is_named(spec: Spec) -> None:
    picture = draw(spec)
    told = " ".join(map(text, parts(picture)))
    leaving = [row for row in spec.transitions if row.dest is not None]
    assert [row.id for row in leaving if row.trigger not in told] == []
    assert [row.id for row in spec.transitions if any(a not in told for a in row.do)] == []


def test_every_timer_is_in_the_box_of_its_state() -> None:
    boxes = {box.name: text(box) for box in draw(shipped()).boxes}
    assert "after 15 s, if not session_open: connect_timed_out" in boxes["Locking"]
    assert "after 30 s + 5 s, if session_open: answer_overdue" in boxes["Locking"]
    assert "after 60 s: acquire_timed_out" in boxes["Acquiring"]
    assert "every 25% of the lease: check_silence" in boxes["Streaming"]
    assert "revive_after: off" in boxes["Failed"]
    drawn = machine(("revive_after: {after: null,", "revive_after: {after: 90,"))
    assert "after 90 s: revive" in {box.name: text(box) for box in draw(drawn).boxes}["Failed"]


def test_a_stranger_sees_what_happens_on_a_taken_slot() -> None:
    picture = draw(shipped())
    (kept,) = arrows(picture, "Acquiring", "BackingOff")
    assert "the slot is taken; session and lock are kept" in text(kept)
    assert "close_session" not in text(kept)
    (again,) = arrows(picture, "BackingOff", "Acquiring")
    assert "if lock_held: inspect_slot" in text(again)
    (backing_off,) = [box for box in picture.boxes if box.name == "BackingOff"]
    assert "a taken slot: up to 1, 2, 4 .. 60 s, without end" in text(backing_off)


@pytest.mark.parametrize(
    ("trouble", "state", "waits"),
    [
        ("a wrong password", "Locking", "up to 60, 300, 900 s, then Failed"),
        ("a lost server", "Streaming", "up to 0.5, 1, 2 .. 30 s, without end"),
    ],
)
def test_a_stranger_sees_what_happens_on(trouble: str, state: str, waits: str) -> None:
    picture = draw(shipped())
    (into,) = arrows(picture, state, "error")
    assert "any" in text(into)
    (meant,) = arrows(picture, "error", "BackingOff")
    assert trouble in text(meant)
    assert "then close_session" in text(meant)
    (backing_off,) = [box for box in picture.boxes if box.name == "BackingOff"]
    assert f"{trouble}: {waits}" in text(backing_off)
    (again,) = arrows(picture, "BackingOff", "Locking")
    assert "if not lock_held: open_session" in text(again)


def test_the_ways_to_failed_look_unlike_the_ways_of_retrying() -> None:
    picture = draw(shipped())
    failing = {arrow.tone for arrow in picture.arrows if arrow.dest == "Failed"}
    retrying = {
        arrow.tone for arrow in picture.arrows if "BackingOff" in (arrow.source, arrow.dest)
    }
    assert failing == {"fail"}
    assert "retry" in retrying


def test_what_the_file_calls_an_example_the_classifier_calls_so_too() -> None:
    known = {(f"error_{rule.action}", rule.error_class) for rule in Classifier.shipped().rules}
    examples = {
        (name, error_class)
        for name, event in shipped().events.items()
        for error_class in event.examples
    }
    assert examples
    assert examples <= known


def test_an_example_of_an_unknown_class_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown class 'contentoin'"):
        machine(("{contention: a taken slot}", "{contentoin: a taken slot}"))


def test_no_line_is_longer_than_its_box_allows(spec: Spec) -> None:
    for box in draw(spec).boxes:
        assert max(len(f"{line.strong} {line.plain}".strip()) for line in box.lines) <= 52


def test_mermaid_draws_every_arrow_once_and_styles_it_once(spec: Spec) -> None:
    picture, drawn = draw(spec), diagram.mermaid(spec)
    links = re.findall(rf"^  ({ID}) -->(?:\|\"`[^`]*`\"\|)? ({ID})$", drawn, re.MULTILINE)
    assert links == [(arrow.source, arrow.dest) for arrow in picture.arrows]
    styled = [n for found in re.findall(r"linkStyle ([\d,]+)", drawn) for n in found.split(",")]
    assert sorted(styled, key=int) == [str(n) for n in range(len(links))]


def test_mermaid_takes_no_word_of_the_file_for_markup() -> None:
    drawn = diagram.mermaid(machine(EDITS["words that mean something in markup"]))
    (label,) = re.findall(r'  Idle\["`(.*?)`"\]', drawn, re.DOTALL)
    assert not set(label.replace("**Idle**", "")) & set('"`*<>\\')
    assert "#34;quoted#34;" in label
    assert "#95;lined#95;" in label


def test_dot_is_made_of_statements_with_well_formed_labels(spec: Spec) -> None:
    first, *statements, last = diagram.dot(spec).splitlines()
    assert (first, last) == ("digraph machine {", "}")
    assert [line for line in statements if not STATEMENT.fullmatch(line.strip())] == []
    for label in re.findall(r"label=(<.*>), (?:color|fillcolor)=", diagram.dot(spec)):
        ET.fromstring(f"<label>{label[1:-1]}</label>")  # noqa: S314  (our own text)


def test_dot_draws_the_same_as_mermaid(spec: Spec) -> None:
    picture, drawn = draw(spec), diagram.dot(spec)
    assert re.findall(rf"^  ({ID}) \[label", drawn, re.MULTILINE) == [
        box.name for box in picture.boxes
    ]
    assert re.findall(rf"^  ({ID}) -> ({ID}) \[", drawn, re.MULTILINE) == [
        (arrow.source, arrow.dest) for arrow in picture.arrows
    ]


def test_svg_is_xml_on_white_and_shows_all_words() -> None:
    drawn = machine(EDITS["words that mean something in markup"])
    root = ET.fromstring(diagram.svg(drawn))  # noqa: S314  (drawn here)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "background-color: #ffffff" in root.attrib["style"]
    shown = "".join("".join(root.itertext()).split())
    for line in (line for part in parts(draw(drawn)) for line in part.lines):
        assert "".join(f"{line.strong}{line.plain}".split()) in shown


def test_svg_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mermaidx", None)
    with pytest.raises(BadInput, match=r"pip install 'slotkeeper\[cli\]'"):
        diagram.svg(shipped())


def test_the_command_draws_the_shipped_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagram"]) == 0
    assert capsys.readouterr().out == diagram.mermaid(shipped()) + "\n"


def test_the_command_draws_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(edited(("nothing open, nothing owed", "asleep")), encoding="utf-8")
    assert main(["diagram", "--format", "dot", str(other)]) == 0
    assert "asleep" in capsys.readouterr().out


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda p: p.name)
def test_the_generated_parts_of_a_page_are_fresh(page: Path) -> None:
    """If this fails: python -m fsm.machine.docs."""
    written = page.read_text(encoding="utf-8")
    assert "<!-- generated: diagram -->" in written
    assert written == filled(written, shipped())


def test_only_what_stands_between_the_marks_is_generated() -> None:
    page = "before\n<!-- generated: policies -->\nold\n<!-- end -->\nafter\n"
    new = filled(page, shipped())
    assert new.startswith("before\n<!-- generated: policies -->\n")
    assert new.endswith("\n<!-- end -->\nafter\n")
    assert "old" not in new
    assert "| `error_retry_long` | `auth` | up to 60, 300, 900 s | 3 retries |" in new


def test_a_page_that_asks_for_an_unknown_part_is_refused() -> None:
    with pytest.raises(BadInput, match="no part 'poem'"):
        filled("<!-- generated: poem -->\n<!-- end -->", shipped())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"initial_delay": 1, "max_delay": 60}, "up to 1, 2, 4 .. 60 s, without end"),
        ({"initial_delay": 1, "max_delay": 4}, "up to 1, 2, 4 s, without end"),
        ({"initial_delay": 5, "max_delay": 9, "factor": 1, "jitter": "none"}, "5 s, without end"),
        ({"initial_delay": 1, "max_delay": 9, "jitter": "decorrelated"}, "1 to 9 s, without end"),
        ({"initial_delay": 1, "max_delay": 60, "max_retries": 0}, "Failed at once"),
        ({"initial_delay": 1, "max_delay": 60, "max_retries": 2}, "up to 1, 2 s, then Failed"),
        (
            {"initial_delay": 1, "max_delay": 60, "max_retries": 5},
            "up to 1, 2, 4 .. 16 s; 5 retries, then Failed",
        ),
        (
            {"initial_delay": 2, "max_delay": 60, "max_elapsed": 600},
            "up to 2, 4, 8 .. 60 s; 10 min, then Failed",
        ),
    ],
)
def test_a_policy_is_told_in_words(fields: dict[str, float | str], words: str) -> None:
    assert waiting(Policy.model_validate(fields), "Failed") == words


def test_delays_are_as_the_policy_draws_them() -> None:
    policy = shipped().policy("error_retry_long", "auth")
    assert (
        growth(policy) == "up to " + ", ".join(f"{policy.ceiling(n):g}" for n in (1, 2, 3)) + " s"
    )


def test_both_limits_of_a_budget_are_told() -> None:
    policy = Policy(initial_delay=1, max_delay=1, max_retries=1, max_elapsed=3600)
    assert budget(policy) == "1 retry or 1 h"


def test_seconds_that_are_no_whole_minutes_stay_seconds() -> None:
    assert [duration(seconds) for seconds in (0.5, 90, 300, 7200)] == [
        "0.5 s",
        "90 s",
        "5 min",
        "2 h",
    ]
