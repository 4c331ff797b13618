"""What a diagram of a machine shows: boxes and arrows, and the words on them.

Rows that leave a state are arrows. Rows that stay in it, and its timers, are lines inside its box.
Where the machine file tells in plain words what an event means, these are emphasized, and the event
follows in brackets.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fsm.machine import words
from fsm.machine.grouping import ERROR, Groups, Moves, group, is_error, meaning, unique
from fsm.machine.palette import Tone
from fsm.machine.spec import Row, Spec, State, Timer

TONES: Final[dict[State, Tone]] = {
    "Idle": "rest",
    "Locking": "way",
    "Acquiring": "way",
    "Streaming": "goal",
    "BackingOff": "retry",
    "Failed": "fail",
}
BOX_WIDTH: Final = 52
ARROW_WIDTH: Final = 24
"""Characters in a line."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text; ``strong`` stands first, and is emphasized."""

    strong: str = ""
    plain: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """A state, or what stands beside the states."""

    name: str
    """An identifier; of a state, its name."""
    tone: Tone
    lines: tuple[Line, ...]
    rows: tuple[str, ...] = ()
    """Ids of the rows that are lines of it."""


@dataclass(frozen=True, slots=True)
class Arrow:
    """The rows that lead in the same way from one box to another."""

    source: str
    dest: str
    tone: Tone
    lines: tuple[Line, ...]
    rows: tuple[str, ...]
    """Their ids."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A whole diagram."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


def draw(spec: Spec) -> Picture:
    """Compose the picture of a machine."""
    groups = group(spec)
    asides = [_letting_go(spec, moves) for moves in groups.letting_go]
    asides += [_governor(spec, moves) for moves in groups.governed]
    boxes = [_state(spec, state) for state in spec.states]
    errors = [Box(ERROR, "retry", (Line("an error"), Line(plain="what it means decides")))]
    return Picture(
        boxes=(*boxes, *(errors if groups.into_error else ()), *(box for box, _ in asides)),
        arrows=(*_arrows(spec, groups), *(arrow for _, arrow in asides)),
    )


def _arrows(spec: Spec, groups: Groups) -> Iterator[Arrow]:
    """Yield the arrows in an order that Mermaid lays out with few crossings."""
    direct = [_arrow(m[0].source, m[0].dest, m, _direct(m)) for m in groups.direct]
    yield from (arrow for arrow in direct if arrow.tone == "goal")
    for moves in groups.into_error:
        yield _arrow(moves[0].source, ERROR, moves, _into_error(spec, moves))
    for moves in groups.out_of_error:
        yield _arrow(ERROR, moves[0].dest, moves, _out_of_error(spec, moves, groups))
    yield from (arrow for arrow in direct if arrow.tone != "goal")


def _arrow(source: str, dest: str, moves: Moves, lines: Iterable[Line]) -> Arrow:
    return Arrow(source, dest, _tone(source, dest), _wrapped(lines, ARROW_WIDTH), _ids(moves))


def _tone(source: str, dest: str) -> Tone:
    if dest == "Failed":
        return "fail"
    if source == "Failed":
        return "rest"
    return "retry" if "BackingOff" in (source, dest) or dest == ERROR else "goal"


def _ids(moves: Moves) -> tuple[str, ...]:
    return tuple(unique(move.row.id for move in moves))


# The words on arrows.


def _direct(moves: Moves) -> Iterator[Line]:
    row = moves[0].row
    names = " · ".join(_triggers(moves))
    told = "; ".join(unique(move.row.about for move in moves if move.row.about))
    if told:
        yield Line(told, f"({names})")
        yield from _condition(row)
    elif row.when is None:
        yield _saying(names, ", ".join(row.do))
    else:
        yield Line(names)
        yield from _condition(row)


def _condition(row: Row) -> Iterator[Line]:
    actions = ", ".join(row.do)
    if row.when is not None:
        yield _saying(f"if {row.when}", actions)
    elif actions:
        yield Line(plain=f"then {actions}")


def _into_error(spec: Spec, moves: Moves) -> Iterator[Line]:
    blamed = [trigger for trigger in _triggers(moves) if not is_error(spec, trigger)]
    yield from (Line(trigger) for trigger in blamed)
    yield Line(plain="or any other error" if blamed else "any error")


def _out_of_error(spec: Spec, moves: Moves, groups: Groups) -> Iterator[Line]:
    elsewhere = {move.row.trigger for direct in groups.direct for move in direct}
    for name in unique(found[0] for move in moves if (found := meaning(spec, move))):
        event = spec.events[name]
        examples = "" if name in elsewhere else ", ".join(event.examples.values())
        yield Line(examples or event.about, f"({name})")
    yield from _condition(moves[0].row)


def _triggers(moves: Moves) -> list[str]:
    return unique(move.row.trigger for move in moves)


# What stands beside the states.


def _letting_go(spec: Spec, moves: Moves) -> tuple[Box, Arrow]:
    lines = []
    for actions in unique(move.row.do for move in moves if move.row.do):
        states = unique(move.source for move in moves if move.row.do == actions)
        lines.append(_saying(f"from {', '.join(states)}", ", ".join(actions)))
    return _aside(spec, "letting_go", moves, lines)


def _governor(spec: Spec, moves: Moves) -> tuple[Box, Arrow]:
    blamed = unique(blame for move in moves for blame in move.row.blame.items())
    lines = [
        Line(plain=words.waiting(spec.policy(policy, error_class), _ending(spec)))
        for policy, error_class in blamed
    ]
    return _aside(spec, "governor", moves, [*_condition(moves[0].row), *lines])


def _aside(spec: Spec, name: str, moves: Moves, lines: list[Line]) -> tuple[Box, Arrow]:
    dest = moves[0].dest
    sources = unique(move.source for move in moves)
    everywhere = set(spec.states) <= {*sources, dest}
    where = "in every state" if everywhere else f"in {', '.join(sources)}"
    often = Counter(move.row.trigger for move in moves).most_common()
    told = [_saying(trigger, spec.events[trigger].about) for trigger, _ in often]
    wrapped = _wrapped([Line(plain=where), *told, *lines], BOX_WIDTH)
    box = Box(f"{name}_{dest}", "aside", wrapped)
    return box, Arrow(box.name, dest, "aside", (), _ids(moves))


# States.


def _state(spec: Spec, state: State) -> Box:
    timers = spec.states[state].timers
    ticks = {timer.trigger for timer in timers.values()}
    stays = [row for row in spec.transitions if row.dest is None and state in row.source]
    lines = [Line(state), Line(plain=spec.states[state].about)]
    lines += [_stays(spec, row) for row in stays if row.trigger not in ticks]
    for name, timer in timers.items():
        lines += _timer(spec, state, name, timer)
    return Box(state, TONES[state], _wrapped(lines, BOX_WIDTH), tuple(row.id for row in stays))


def _stays(spec: Spec, row: Row) -> Line:
    told = row.about or spec.events[row.trigger].about
    return _saying(row.trigger, "; ".join(part for part in (told, ", ".join(row.do)) if part))


def _timer(spec: Spec, state: State, name: str, timer: Timer) -> Iterator[Line]:
    if timer.policy is not None:
        yield from _backoffs(spec)
        return
    length = words.length(timer)
    if length is None:
        yield _saying(name, "off")
        return
    condition = f", if {timer.when}" if timer.when else ""
    yield _saying(f"{length}{condition}", _effect(spec, state, timer.trigger))


def _effect(spec: Spec, state: State, trigger: str) -> str:
    """Name what a tick does that stays in the state; or the event, which an arrow bears."""
    stays = [row for row in spec.rows(state, trigger) if row.dest is None]
    return ", ".join(unique(action for row in stays for action in row.do)) or trigger


def _backoffs(spec: Spec) -> Iterator[Line]:
    for name, policy in spec.policies.items():
        examples = spec.events[name].examples if name in spec.events else {}
        for error_class, example in examples.items():
            waiting = words.waiting(policy.of_class(error_class), _ending(spec))
            yield _saying(example, waiting)
        if not examples:
            yield _saying(name, words.waiting(policy, _ending(spec)))


def _ending(spec: Spec) -> str:
    """Name the state in which a spent budget ends."""
    return " or ".join(
        unique(
            row.lands_in(state)
            for state, state_spec in spec.states.items()
            for timer in state_spec.timers.values()
            if timer.policy is not None
            for row in spec.rows(state, timer.exhausted or timer.trigger)
        )
    )


# Lines.


def _saying(name: str, what: str) -> Line:
    return Line(f"{name}:", what) if what else Line(name)


def _wrapped(lines: Iterable[Line], width: int) -> tuple[Line, ...]:
    return tuple(short for line in lines for short in _wrap(line, width))


def _wrap(line: Line, width: int) -> Iterator[Line]:
    left = len(" ".join(line.strong.split()))
    for piece in _balanced(" ".join(f"{line.strong} {line.plain}".split()), width):
        yield Line(piece[:left].rstrip(), piece[left:].lstrip())
        left = max(0, left - len(piece) - 1)


def _balanced(text: str, width: int) -> list[str]:
    """Wrap into as few lines as ``width`` needs, each then as short as it can be."""
    lines = _cut(text, width)
    while width > 1 and len(narrower := _cut(text, width - 1)) == len(lines):
        lines, width = narrower, width - 1
    return lines


def _cut(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
