"""What one session received, in order, and the host has not read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from fsm.errors import DecodeError
from fsm.postgres.changes import Change
from fsm.postgres.pgoutput import HEADER, Begin, Commit, Decoder, Message, Origin, Truncate
from fsm.runtime.progress import Progress

Item: TypeAlias = Change | Truncate | Message
"""What a transaction consists of."""

_COMMIT: Final = ord("C")


class Reader(Protocol):
    """Who reads feeds, one after the other."""

    @property
    def progress(self) -> Progress:
        """What the host has and what may be confirmed."""

    def wake(self) -> None:
        """Something arrived."""

    def advance_if_idle(self) -> None:
        """The server told its position."""

    def report(self, error: Exception) -> None:
        """Something cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The beginning of a transaction that has at least one item."""

    begin: Begin | None
    """None for a logical message outside of any transaction."""
    origin: str | None
    first: Item

    @property
    def commit_lsn(self) -> int:
        """Where it stands among transactions."""
        return self.begin.commit_lsn if self.begin else _last_byte(self.first)

    @property
    def xid(self) -> int:
        """Its transaction id; 0 for such a message."""
        return self.begin.xid if self.begin else 0


class Feed:
    """What one session received, in order: the Inbox of the Session port.

    Args:
        reader: is told when something arrives.
        number: which session of the delivery this is.
        limit: bytes held before the socket is left unread.
    """

    def __init__(self, reader: Reader, number: int, limit: int) -> None:
        self.number = number
        self.ended = False
        self.idle_position = 0
        self._decoder = Decoder()
        self._reader = reader
        self._limit = limit
        self._batches: deque[tuple[Sequence[Any], int]] = deque()
        self._size = 0
        self._batch: Sequence[Any] = ()
        self._batch_size = 0
        self._next = 0
        self._room = asyncio.Event()
        self._begin: Begin | None = None
        self._origin: str | None = None
        self._dropping = False
        self._begun: Begun | None = None

    # The Inbox.

    def put(self, messages: Sequence[Any], size: int) -> None:
        """Take what arrived; see ``fsm.runtime.session.Inbox``."""
        if self.ended:
            return
        self._batches.append((messages, size))
        self._size += size
        self.idle_position = 0
        self._reader.wake()

    def keepalive(self, wal_end: int) -> None:
        """Note the server's position; confirm it where nothing is on its way."""
        self.idle_position = wal_end
        self._reader.advance_if_idle()

    @property
    def full(self) -> bool:
        """The bound is reached."""
        return self._size >= self._limit

    @property
    def waiting_bytes(self) -> int:
        """What is held, in bytes."""
        return self._size

    async def room(self) -> None:
        """Wait until half of the bound is free."""
        while self._size * 2 > self._limit and not self.ended:
            self._room.clear()
            await self._room.wait()

    @property
    def flushed(self) -> int:
        """What a reply may confirm."""
        return self._reader.progress.flushed

    # Reading.

    @property
    def empty(self) -> bool:
        """All that arrived was read."""
        return self._next >= len(self._batch) and not self._batches

    @property
    def at_rest(self) -> bool:
        """All that arrived was read, and no transaction is half read."""
        begun = self._begin or self._begun or self._dropping
        return self.empty and not begun

    def take(self) -> Any | None:
        """Give the next message, decoded; None where there is none at the moment."""
        while True:
            if self._next >= len(self._batch) and not self._turn_over():
                return None
            try:
                item = self._decoder.decode(self._batch[self._next])
            except DecodeError as error:
                # What cannot be decoded is not passed: a host that reads on meets it again.
                self._reader.report(error)
                raise
            self._next += 1
            if item is not None:
                return item

    def _turn_over(self) -> bool:
        """Go on to the next batch; give the room of the last one back."""
        self._size -= self._batch_size
        self._batch, self._batch_size, self._next = (), 0, 0
        if self._batches:
            self._batch, self._batch_size = self._batches.popleft()
        if self._size * 2 <= self._limit:
            self._room.set()
        return bool(self._batch)

    def begun(self) -> Begun | None:
        """Read up to the first item of the next transaction that the host should see."""
        while self._begun is None:
            item = self.take()
            if item is None:
                return None
            self._begun = self._begin_with(item)
        return self._begun

    def _begin_with(self, item: Any) -> Begun | None:
        if isinstance(item, Begin):
            self._begin, self._origin = item, None
            self._dropping = self._reader.progress.is_acknowledged(item.commit_lsn)
            return None
        if isinstance(item, Commit):
            self._end_without_items(item)
            return None
        if self._dropping:
            return None
        if isinstance(item, Origin):
            self._origin = item.name
            return None
        if self._begin is None and self._reader.progress.is_acknowledged(_last_byte(item)):
            return None
        return Begun(self._begin, self._origin, item)

    def _end_without_items(self, commit: Commit) -> None:
        """A transaction without anything for the host is done as soon as it is read."""
        dropped, self._begin, self._dropping = self._dropping, None, False
        if dropped:  # the host has had it, and its word on it counts
            return
        self._reader.progress.hand_over(commit.commit_lsn)
        self._reader.progress.acknowledge(commit.commit_lsn, commit.end_lsn)

    def drop_begun(self) -> None:
        """Read over the transaction that has begun: the host has it from an earlier session."""
        self._dropping = self._begin is not None
        self._begun = None

    def claim(self) -> None:
        """Take the beginning away: a transaction object reads the rest."""
        self._begin = self._begun = None

    def end(self, *, reading: bool) -> None:
        """The session is over.

        Args:
            reading: the host is in the midst of a transaction of this feed; its rest is kept
                if it arrived whole.
        """
        rest = [*self._batch[self._next :]]
        for messages, _ in self._batches:
            rest.extend(messages)
        self._batches.clear()
        self._size = self._batch_size = self._next = 0
        self._batch = _up_to_commit(rest) if reading else ()
        self._begun = self._begin = None
        self.ended = True
        self._room.set()


def _last_byte(message: Item) -> int:
    """Give the LSN that stands for a logical message outside of any transaction.

    The server gives the LSN at which its record ends (logicalmsg_decode in decode.c). The record
    of a commit may begin there, whose LSN is then the same.
    """
    return message.lsn - 1


def _up_to_commit(messages: list[Any]) -> list[Any]:
    for position, payload in enumerate(messages):
        if payload[HEADER] == _COMMIT:
            return messages[: position + 1]
    return []
