"""One transaction, as the host reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Protocol

from fsm.feed import Begun, Feed, Item
from fsm.postgres.lsn import format_lsn
from fsm.postgres.pgoutput import Commit, Origin


class Source(Protocol):
    """Who knows what became of a transaction's session."""

    def is_gone(self, feed: Feed) -> bool:
        """Did someone else move the slot since the session of ``feed``?"""

    def is_interrupted(self, feed: Feed) -> bool:
        """Has the session of ``feed`` ended, and does no later one stream?"""

    async def rest_of(self, transaction: Transaction) -> Any:
        """Wait for the next item of a transaction, or its Commit."""


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

    def __init__(self, source: Source, feed: Feed, begun: Begun) -> None:
        begin, first = begun.begin, begun.first
        self.xid: int = begun.xid
        self.commit_lsn: int = begun.commit_lsn
        self.commit_time: datetime | None = begin.commit_time if begin else None
        self.origin = begun.origin
        self._source = source
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
        return self._source.is_gone(self._feed) or self._source.is_interrupted(self._feed)

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
                item = await self._source.rest_of(self)
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
