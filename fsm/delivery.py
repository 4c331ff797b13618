"""From the stream to the host: transactions, handed over one by one.

A ``Feed`` holds what one session received and the host has not read. The ``Delivery`` outlives
sessions: it hands transactions over, drops what the host has acknowledged already, and lets a
transaction that was interrupted in the host's hands go on where it was when the next session sends
it again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from fsm.errors import AckRefused, DecodeError, LeaseLost, SlotkeeperError
from fsm.postgres.changes import Change
from fsm.postgres.lsn import format_lsn
from fsm.postgres.pgoutput import HEADER, Begin, Commit, Decoder, Message, Origin, Truncate
from fsm.runtime.progress import Progress

Item: TypeAlias = Change | Truncate | Message
"""What a transaction consists of."""

_COMMIT: Final = ord("C")


@dataclass(frozen=True, slots=True)
class _Begun:
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
        delivery: is told when something arrives.
        number: which session of the delivery this is.
        limit: bytes held before the socket is left unread.
    """

    def __init__(self, delivery: Delivery, number: int, limit: int) -> None:
        self.number = number
        self.ended = False
        self.idle_position = 0
        self._decoder = Decoder()
        self._delivery = delivery
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
        self._begun: _Begun | None = None

    # The Inbox.

    def put(self, messages: Sequence[Any], size: int) -> None:
        """Take what arrived; see ``fsm.runtime.session.Inbox``."""
        if self.ended:
            return
        self._batches.append((messages, size))
        self._size += size
        self.idle_position = 0
        self._delivery.wake()

    def keepalive(self, wal_end: int) -> None:
        """Note the server's position; confirm it where nothing is on its way."""
        self.idle_position = wal_end
        self._delivery.advance_if_idle()

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
        return self._delivery.progress.flushed

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
                self._delivery.report(error)
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

    def begun(self) -> _Begun | None:
        """Read up to the first item of the next transaction that the host should see."""
        while self._begun is None:
            item = self.take()
            if item is None:
                return None
            self._begun = self._begin_with(item)
        return self._begun

    def _begin_with(self, item: Any) -> _Begun | None:
        if isinstance(item, Begin):
            self._begin, self._origin = item, None
            self._dropping = self._delivery.progress.is_acknowledged(item.commit_lsn)
            return None
        if isinstance(item, Commit):
            self._end_without_items(item)
            return None
        if self._dropping:
            return None
        if isinstance(item, Origin):
            self._origin = item.name
            return None
        if self._begin is None and self._delivery.progress.is_acknowledged(_last_byte(item)):
            return None
        return _Begun(self._begin, self._origin, item)

    def _end_without_items(self, commit: Commit) -> None:
        """A transaction without anything for the host is done as soon as it is read."""
        dropped, self._begin, self._dropping = self._dropping, None, False
        if dropped:  # the host has had it, and its word on it counts
            return
        self._delivery.progress.hand_over(commit.commit_lsn)
        self._delivery.progress.acknowledge(commit.commit_lsn, commit.end_lsn)

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


class Transaction:
    """One committed transaction, handed over at its Begin.

    Iterate over it once to get its changes; then acknowledge it.

    Attributes:
        xid: its transaction id; 0 for a logical message outside of any transaction.
        commit_lsn: LSN of its commit, of such a message the LSN of its last byte; grows from one
            transaction to the next.
        commit_time: when it was committed (UTC); None for such a message.
        origin: the name of the replication origin it came from, if any.
    """

    def __init__(self, delivery: Delivery, feed: Feed, begun: _Begun) -> None:
        begin, first = begun.begin, begun.first
        self.xid: int = begun.xid
        self.commit_lsn: int = begun.commit_lsn
        self.commit_time: datetime | None = begin.commit_time if begin else None
        self.origin = begun.origin
        self._delivery = delivery
        self._feed = feed
        self._ahead: Item | None = first
        self._end_lsn: int | None = None if begin else first.lsn
        self._seen = 0
        self._skip = 0

    @property
    def complete(self) -> bool:
        """Its end was read."""
        return self._end_lsn is not None and self._ahead is None

    @property
    def end_lsn(self) -> int | None:
        """The LSN that acknowledging it confirms; None until its end was read."""
        return self._end_lsn

    @property
    def lost(self) -> bool:
        """The session that brought it is over, and the slot is not (or not yet) ours again."""
        return self._delivery.is_gone(self._feed) or self._delivery.is_interrupted(self._feed)

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        """Give its next change.

        Raises:
            LeaseLost: its session was lost before its end arrived, and it does not come again.
            SlotFailed: the keeper failed meanwhile.
        """
        item: Any = self._ahead
        if item is not None:
            self._ahead = None
        elif self._end_lsn is not None:
            raise StopAsyncIteration
        else:
            item = self.take()
            if item is None:
                item = await self._delivery.rest_of(self)
        if type(item) is Commit:
            self._end_lsn = item.end_lsn
            raise StopAsyncIteration
        self._seen += 1
        return item  # type: ignore[no-any-return]  # the decoder's items are Change, Truncate or Message

    async def batches(self, size: int = 1000) -> AsyncIterator[list[Item]]:
        """Give its changes in lists, of what is there at once and at most ``size`` each."""
        batch: list[Item] = []
        async for item in self:
            batch.append(item)
            if len(batch) >= size or self._feed.empty:
                yield batch
                batch = []
        if batch:
            yield batch

    def take(self) -> Any | None:
        """Give what is there of the rest without waiting: an item, its Commit, or None."""
        while (item := self._feed.take()) is not None:
            if type(item) is Origin:
                continue
            if not self._skip or type(item) is Commit:
                return item
            self._skip -= 1
        return None

    @property
    def feed(self) -> Feed:
        """Where it is read from."""
        return self._feed

    def resume_from(self, feed: Feed) -> None:
        """Go on in a later session, after the items that the host has seen already."""
        self._feed = feed
        self._skip = self._seen - 1  # the first item was read with the beginning

    def __repr__(self) -> str:
        return f"transaction {self.xid} (commit {format_lsn(self.commit_lsn)})"


class Delivery:
    """Hands transactions to the host, across sessions.

    Args:
        limit: bytes that may wait for the host before the socket is left unread.
        report: told of what cannot be decoded, which ends the session.
    """

    def __init__(self, limit: int, report: Callable[[Exception], None]) -> None:
        self.progress = Progress()
        self.report = report
        self._limit = limit
        self._feed: Feed | None = None
        self._valid_from = 0
        self._open: Transaction | None = None
        self._failure: SlotkeeperError | None = None
        self._closed = False
        self._something = asyncio.Event()

    # What the keeper tells it.

    def begin_session(self, *, moved_by_another: bool) -> Feed:
        """Make the feed of a session that streams from now on.

        Args:
            moved_by_another: the slot stands beyond what we confirmed; what the host still has of
                earlier sessions is not ours to finish.
        """
        number = self._feed.number + 1 if self._feed else 0
        if moved_by_another:
            self._valid_from = number
        self._feed = Feed(self, number, self._limit)
        self.wake()
        return self._feed

    def end_session(self) -> None:
        """Note that the session is over; what the host has not seen of it comes again."""
        if self._feed is not None and not self._feed.ended:
            reading = self._open is not None and self._open.feed is self._feed
            self._feed.end(reading=reading and self._open is not None and not self._open.complete)
            self.wake()

    def fail(self, error: SlotkeeperError | None) -> None:
        """Let everything that waits raise ``error``; None takes it back."""
        self._failure = error
        self.wake()

    def close(self) -> None:
        """Let iteration end."""
        self._closed = True
        self.wake()

    def reopen(self) -> None:
        """Take ``close`` back."""
        self._closed = False

    def wake(self) -> None:
        """Let what waits look again."""
        self._something.set()

    def advance_if_idle(self) -> None:
        """Confirm the server's position where nothing is outstanding or on its way."""
        feed = self._feed
        if feed is not None and not feed.ended and feed.idle_position and feed.at_rest:
            self.progress.advance_idle(feed.idle_position)

    @property
    def waiting_bytes(self) -> int:
        """How much waits for the host."""
        return self._feed.waiting_bytes if self._feed else 0

    # What the host asks of it.

    def is_gone(self, feed: Feed) -> bool:
        """Did someone else move the slot since the session of ``feed``?"""
        return feed.number < self._valid_from

    def is_interrupted(self, feed: Feed) -> bool:
        """Has the session of ``feed`` ended, and does no later one stream?"""
        return feed.ended and (self._feed is None or self._feed.ended)

    async def next_transaction(self) -> Transaction | None:
        """Wait for the next transaction; what is unread of the last one is passed over.

        Returns:
            None where the keeper was stopped.

        Raises:
            SlotFailed: the keeper failed.
        """
        if self._open is not None:
            await self._pass_over(self._open)
            self._open = None
        while not self._closed:
            self._raise_failure()
            transaction = self._begin_transaction()
            if transaction is not None:
                return transaction
            self.advance_if_idle()
            await self._wait()
        return None

    def _begin_transaction(self) -> Transaction | None:
        feed = self._feed
        if feed is None or feed.ended:
            return None
        begun = feed.begun()
        if begun is None:
            return None
        feed.claim()
        self._open = Transaction(self, feed, begun)
        self.progress.hand_over(self._open.commit_lsn)
        return self._open

    async def _pass_over(self, transaction: Transaction) -> None:
        """Read what is left of a transaction, unless its session is over: then it comes again."""
        while transaction.end_lsn is None and not self._closed:
            self._raise_failure()
            item = transaction.take()
            if type(item) is Commit:
                return
            if item is not None:
                continue
            if transaction.feed.ended:
                return
            await self._wait()

    async def rest_of(self, transaction: Transaction) -> Any:
        """Wait for the next item of a transaction, or its Commit; in a later session if need be."""
        while True:
            self._raise_if_gone(transaction)
            item = transaction.take()
            if item is not None:
                return item
            if not (transaction.feed.ended and self._resume(transaction)):
                await self._wait()

    def _resume(self, transaction: Transaction) -> bool:
        """Find an interrupted transaction in the present session.

        Returns:
            True where there is more to know: it goes on there, another one comes before it, or one
            that comes after it begins and it is gone.
        """
        feed = self._feed
        begun = None if feed is None or feed.ended else feed.begun()
        if feed is None or begun is None:
            return False
        if (begun.commit_lsn, begun.xid) == (transaction.commit_lsn, transaction.xid):
            feed.claim()
            transaction.resume_from(feed)
        elif begun.commit_lsn < transaction.commit_lsn and self.progress.is_outstanding(
            begun.commit_lsn
        ):
            feed.drop_begun()
        else:
            self._valid_from = feed.number
        return True

    async def acknowledge(self, transaction: Transaction) -> None:
        """Take the host's word that it is done with a transaction.

        Where its session was lost, this waits until the slot is ours again.

        Raises:
            AckRefused: its end was not read.
            LeaseLost: someone else moved the slot meanwhile, or the keeper was stopped.
            SlotFailed: the keeper failed meanwhile.
        """
        end_lsn = transaction.end_lsn
        if end_lsn is None or not transaction.complete:
            raise AckRefused(
                f"{transaction} was not read to its end, so acknowledging it would lose the rest; "
                "iterate over all of its changes first"
            )
        while transaction.lost:
            self._raise_if_gone(transaction)
            await self._wait()
        self.progress.acknowledge(transaction.commit_lsn, end_lsn)
        if self._open is transaction:
            self._open = None
        self.advance_if_idle()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _raise_if_gone(self, transaction: Transaction) -> None:
        self._raise_failure()
        if self.is_gone(transaction.feed):
            raise LeaseLost(
                f"{transaction} is not ours to finish: its session was lost, and another consumer "
                "moved the slot meanwhile; undo what was done with it, or rely on that consumer "
                "having done the same"
            )
        if self._closed:
            raise LeaseLost(
                f"{transaction} cannot be finished: the keeper was stopped; it comes again to "
                "whoever streams next"
            )

    async def _wait(self) -> None:
        self._something.clear()
        await self._something.wait()
