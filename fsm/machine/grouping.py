"""Which rows of a machine share an arrow, since it has more of them than an eye can follow.

Rows with the same source, destination, condition and actions are one arrow. An error that means the
same in several states passes through one box. What leads to Idle, and the governor, stand apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias, TypeVar

from fsm.machine.spec import INITIAL, Row, Spec, State

ERROR: Final = "error"
"""The name of the box that errors pass through."""

T = TypeVar("T", bound=Hashable)


class Move(NamedTuple):
    """A row, as it leaves one of its sources."""

    row: Row
    source: State
    dest: State


Moves: TypeAlias = tuple[Move, ...]

_Meaning: TypeAlias = tuple[str, State, tuple[str, ...]]
"""A classifier's event, where it leads, and what is done on the way."""


@dataclass(frozen=True, slots=True)
class Groups:
    """All moves of a machine, each group one arrow; moves of errors stand in two of them."""

    direct: tuple[Moves, ...]
    """From a state to a state."""
    into_error: tuple[Moves, ...]
    """From a state to the box of errors."""
    out_of_error: tuple[Moves, ...]
    """From the box of errors to a state."""
    letting_go: tuple[Moves, ...]
    """From several states to Idle."""
    governed: tuple[Moves, ...]
    """From several states to where the governor sends them."""


def group(spec: Spec) -> Groups:
    """Sort the rows that leave a state; none is left out."""
    moves = _moves(spec)
    letting_go = [move for move in moves if move.dest == INITIAL]
    governed = [move for move in moves if move.dest != INITIAL and is_governed(spec, move)]
    others = [move for move in moves if move not in letting_go and move not in governed]
    shared = _shared_meanings(spec, others)
    errors = [move for move in others if meaning(spec, move) in shared]
    direct = [move for move in others if move not in errors]
    return Groups(
        direct=_by(lambda move: (move.source, move.dest, str(move.row.when), move.row.do), direct),
        into_error=_by(lambda move: move.source, errors),
        out_of_error=_by(lambda move: (move.dest, move.row.do), errors),
        letting_go=_by(lambda move: move.dest, letting_go),
        governed=_by(lambda move: move.dest, governed),
    )


def meaning(spec: Spec, move: Move) -> _Meaning | None:
    """Say as which error a row counts; None where it is none."""
    if move.row.blame:
        return next(iter(move.row.blame)), move.dest, move.row.do
    if is_error(spec, move.row.trigger):
        return move.row.trigger, move.dest, move.row.do
    return None


def is_error(spec: Spec, event: str) -> bool:
    """Is it an event of the classifier?"""
    return spec.events[event].sender == "classifier"


def is_governed(spec: Spec, move: Move) -> bool:
    """Is it the governor's?"""
    return spec.events[move.row.trigger].sender == "governor"


def unique(items: Iterable[T]) -> list[T]:
    """Give each item once, in the order of its first appearance."""
    return list(dict.fromkeys(items))


def _moves(spec: Spec) -> list[Move]:
    return [
        Move(row, source, row.dest)
        for row in spec.transitions
        if row.dest is not None
        for source in row.source
    ]


def _shared_meanings(spec: Spec, moves: list[Move]) -> set[_Meaning]:
    """Find what an error means in more than one state."""
    meanings = (meaning(spec, move) for move in moves if is_error(spec, move.row.trigger))
    counted = Counter(found for found in meanings if found is not None)
    return {found for found, states in counted.items() if states > 1}


def _by(key: Callable[[Move], Hashable], moves: list[Move]) -> tuple[Moves, ...]:
    groups: dict[Hashable, list[Move]] = {}
    for move in moves:
        groups.setdefault(key(move), []).append(move)
    return tuple(tuple(found) for found in groups.values())
