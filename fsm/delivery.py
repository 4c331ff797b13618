"""From the stream to the host: transactions, handed over one by one.

A ``Feed`` holds what one session received and the host has not read. The ``Delivery`` outlives
sessions: it hands transactions over, drops what the host has acknowledged already, and lets a
transaction that was interrupted in the host's hands go on where it was when the next session sends
it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fsm.errors import AckRefused, LeaseLost, SlotkeeperError
from fsm.feed import Feed
from fsm.postgres.pgoutput import Commit
from fsm.runtime.progress import Progress
from fsm.transaction import Transaction


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
