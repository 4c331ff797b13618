"""The journal: what the machine did, in order, bounded in memory."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

VERSION: Final = 1
_LOG = logging.getLogger("fsm.journal")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the journal, version 1. Later versions only add fields."""

    seq: int
    wall: float
    """Seconds since 1970."""
    mono: float
    """Seconds, monotonic."""
    visit: int
    """The visit that began with this record, or in which it was written."""
    state: str
    """The state before."""
    trigger: str
    dest: str
    """The state after; the same as ``state`` where the machine stayed."""
    error_class: str | None = None
    action: str | None = None
    """The classifier's action, without ``error_``."""
    attempt: int | None = None
    """Which failure of its kind this was."""
    delay: float | None = None
    """Seconds until the next try."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is known about it: phase, sqlstate, LSNs, holder; and the machine's facts."""
    detail: str = ""
    """One sentence for people."""

    def as_dict(self) -> dict[str, Any]:
        """Give the record as plain data."""
        return {"version": VERSION, **asdict(self)}


class Journal:
    """Keeps the last records and tells listeners of each.

    Args:
        capacity: how many records are kept.
    """

    def __init__(self, capacity: int = 1000) -> None:
        self._records: deque[Record] = deque(maxlen=capacity)
        self._listeners: list[Callable[[Record], object]] = []
        self._seq = 0

    def listen(self, listener: Callable[[Record], object]) -> Callable[[], None]:
        """Call ``listener`` with each record from now on; give back what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def write(self, **fields: Any) -> Record:
        """Write one record; ``seq`` is the journal's to give."""
        self._seq += 1
        record = Record(seq=self._seq, **fields)
        self._records.append(record)
        for listener in tuple(self._listeners):
            try:
                listener(record)
            except Exception:  # noqa: BLE001  (who listens must not disturb what is listened to)
                _LOG.exception("a listener of the journal raised; the machine goes on")
        return record

    def __iter__(self) -> Iterator[Record]:
        return iter(tuple(self._records))

    def __len__(self) -> int:
        return len(self._records)

    @property
    def last(self) -> Record | None:
        """The newest record."""
        return self._records[-1] if self._records else None
