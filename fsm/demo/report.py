"""What the demo found: its figures, and the path that was walked. Nothing here does any I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from fsm.machine.spec import STATES

Move: TypeAlias = tuple[str, str, str]
"""State, trigger, state."""

CONTENTION: Final = "55006"
"""SQLSTATE object_in_use: the slot is active for another process."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """How a keeper fared while a rival had its slot."""

    seconds: float
    """From the first refusal until the rival was asked to leave."""
    attempts: int
    """How often START_REPLICATION was refused, the first time included."""
    cpu_seconds: float
    """Processor time that the keeper's process used meanwhile."""

    @property
    def cpu_percent(self) -> float:
        """Processor time over seconds."""
        return 100 * self.cpu_seconds / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What ``slotkeeper demo --json`` prints."""

    written: int
    received: int
    lost: int
    received_twice: int
    blocked: Blocked
    takeover_ms: float
    states_visited: tuple[str, ...]
    path: tuple[Move, ...]

    def as_dict(self) -> dict[str, Any]:
        """Give them as plain data, rounded to what is measured."""
        return {
            "written": self.written,
            "received": self.received,
            "lost": self.lost,
            "received_twice": self.received_twice,
            "blocked": {
                "seconds": round(self.blocked.seconds, 3),
                "attempts": self.blocked.attempts,
                "cpu_percent": round(self.blocked.cpu_percent, 3),
            },
            "takeover_ms": round(self.takeover_ms, 2),
            "states_visited": list(self.states_visited),
            "path": [list(move) for move in self.path],
        }


class Account(NamedTuple):
    """What became of the rows."""

    received: int
    """Distinct ids that a handler stored."""
    lost: int
    """Ids in the table that no handler stored."""
    received_twice: int
    """Ids that were stored more than once, over all handlers."""


def account_for(ids: Iterable[int], stored: Counter[int]) -> Account:
    """Compare what is in the table with what handlers stored.

    Args:
        ids: of all rows in the table.
        stored: how often each id was stored, over all handlers.
    """
    return Account(
        received=len(stored),
        lost=sum(number not in stored for number in ids),
        received_twice=sum(times > 1 for times in stored.values()),
    )


def walked(records: Iterable[Mapping[str, Any]]) -> tuple[Move, ...]:
    """The moves from state to state in a journal, in order; what stays in a state is left out."""
    return tuple(
        (record["state"], record["trigger"], record["dest"])
        for record in records
        if record["state"] != record["dest"]
    )


def visited(path: Sequence[Move]) -> tuple[str, ...]:
    """The states on a path, in the order of the machine's file."""
    seen = {state for source, _, dest in path for state in (source, dest)}
    return tuple(state for state in STATES if state in seen)


class Stretch(NamedTuple):
    """A part of a path that was walked several times in a row."""

    moves: tuple[Move, ...]
    times: int


def fold(path: Sequence[Move]) -> list[Stretch]:
    """Fold loops of two moves that were walked several times in a row; the rest stays as it is."""
    stretches: list[Stretch] = []
    at = 0
    while at < len(path):
        loop = tuple(path[at : at + 2])
        times = _times(path, at, loop)
        if times > 1:
            stretches.append(Stretch(loop, times))
            at += 2 * times
        else:
            stretches.append(Stretch((path[at],), 1))
            at += 1
    return stretches


def _times(path: Sequence[Move], at: int, loop: tuple[Move, ...]) -> int:
    times = 0
    while tuple(path[at + 2 * times : at + 2 * times + 2]) == loop:
        times += 1
    return times if len(loop) == 2 else 1  # noqa: PLR2004  (a loop of two moves)
