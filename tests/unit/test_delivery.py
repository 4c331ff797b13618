from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsm.delivery import Delivery
from fsm.errors import AckRefused, DecodeError, LeaseLost, SlotFailed
from fsm.feed import Feed
from fsm.postgres.changes import Insert, Message, Truncate
from fsm.testing import pgoutput
from fsm.transaction import Transaction
from tests.support.keepers import row_of, rows_of, settle

OID = 16384
COLUMNS = (pgoutput.ColumnSpec("id", 25, is_key=True),)
LENGTH = 0x30
"""From the LSN of a commit to its end."""
MIB = 1024 * 1024

T = TypeVar("T")


def encoded(
    commit_lsn: int, *values: str, xid: int | None = None, origin: str | None = None
) -> list[bytes]:
    """Write a transaction of inserts."""
    return [
        pgoutput.begin(commit_lsn, xid or commit_lsn),
        *([pgoutput.origin(1, origin)] if origin else []),
        pgoutput.relation(OID, "orders", COLUMNS),
        *(pgoutput.insert(OID, [value]) for value in values),
        pgoutput.commit(commit_lsn, commit_lsn + LENGTH),
    ]


def put(feed: Feed, *messages: bytes) -> None:
    """Let messages arrive together."""
    feed.put(messages, sum(map(len, messages)))


class Scene:
    """A delivery, and what it reported."""

    def __init__(self, limit: int = MIB) -> None:
        self.reported: list[Exception] = []
        self.delivery = Delivery(limit, self.reported.append)
        self.feed = self.delivery.begin_session(moved_by_another=False)

    @property
    def flushed(self) -> int:
        return self.delivery.progress.flushed

    def reconnect(self, *, confirmed: int = 0) -> Feed:
        """Lose the session, if there is one, and stream again from a slot at ``confirmed``."""
        self.delivery.end_session()
        moved = self.delivery.progress.adopt(confirmed)
        self.feed = self.delivery.begin_session(moved_by_another=moved)
        return self.feed

    async def next(self) -> Transaction:
        """Give the next transaction, which has arrived."""
        transaction = await at_once(self.delivery.next_transaction())
        assert transaction is not None
        return transaction

    async def take(self, *, commit_lsn: int) -> Transaction:
        """Read the next transaction whole, without acknowledging it."""
        transaction = await self.next()
        assert transaction.commit_lsn == commit_lsn
        await at_once(rows_of(transaction))
        return transaction


async def at_once(awaitable: Awaitable[T]) -> T:
    """Await what should need nothing but what is there."""
    task = asyncio.ensure_future(awaitable)
    await settle()
    if not task.done():
        task.cancel()
        pytest.fail("it waits")
    return await task


async def begun(awaitable: Awaitable[T]) -> asyncio.Future[T]:
    """Begin what should have to wait."""
    task = asyncio.ensure_future(awaitable)
    await settle()
    assert not task.done()
    return task


def id_of(item: Any) -> str:
    return str(row_of(item)["id"])


async def ids(transaction: Transaction) -> list[str]:
    return [row["id"] for row in await rows_of(transaction)]


# --- handing over


@pytest.mark.asyncio
async def test_a_transaction_is_handed_over_at_its_beginning() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1", "2", xid=700)[:3])
    transaction = await scene.next()
    assert (transaction.xid, transaction.commit_lsn) == (700, 100)
    assert transaction.commit_time == pgoutput.EPOCH
    assert not transaction.complete
    assert transaction.end_lsn is None


@pytest.mark.asyncio
async def test_its_changes_come_as_they_arrive() -> None:
    scene = Scene()
    messages = encoded(100, "1", "2")
    put(scene.feed, *messages[:3])
    transaction = await scene.next()
    assert id_of(await at_once(anext(transaction))) == "1"
    second = await begun(anext(transaction))
    put(scene.feed, messages[3])
    assert id_of(await at_once(second)) == "2"
    end = await begun(anext(transaction))
    put(scene.feed, messages[4])
    with pytest.raises(StopAsyncIteration):
        await at_once(end)
    assert transaction.complete
    assert transaction.end_lsn == 100 + LENGTH


@pytest.mark.asyncio
async def test_the_end_of_a_transaction_stays_its_end() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"), *encoded(200, "2"))
    transaction = await scene.take(commit_lsn=100)
    assert await at_once(ids(transaction)) == []


@pytest.mark.asyncio
async def test_the_origin_is_told() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1", origin="berlin"), *encoded(200, "2"))
    assert (await scene.next()).origin == "berlin"
    assert (await scene.next()).origin is None


@pytest.mark.asyncio
async def test_a_further_origin_is_no_change() -> None:
    scene = Scene()
    messages = encoded(100, "1", "2", origin="berlin")
    put(scene.feed, *messages[:4], pgoutput.origin(1, "berlin"), *messages[4:])
    assert await at_once(ids(await scene.next())) == ["1", "2"]


@pytest.mark.asyncio
async def test_the_next_transaction_passes_over_what_was_not_read() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1", "2", "3"), *encoded(200, "4"))
    first = await scene.next()
    await anext(first)
    second = await scene.next()
    assert second.commit_lsn == 200
    assert await at_once(ids(second)) == ["4"]
    assert not first.complete


@pytest.mark.asyncio
async def test_passing_over_waits_for_the_end() -> None:
    scene = Scene()
    messages = encoded(100, "1", "2")
    put(scene.feed, *messages[:3])
    await scene.next()
    second = await begun(scene.delivery.next_transaction())
    put(scene.feed, *messages[3:], *encoded(200, "3"))
    transaction = await at_once(second)
    assert transaction is not None
    assert transaction.commit_lsn == 200


@pytest.mark.asyncio
async def test_a_truncate_is_a_change() -> None:
    scene = Scene()
    begin, relation, commit = encoded(100)
    put(scene.feed, begin, relation, pgoutput.truncate([OID], cascade=True), commit)
    transaction = await scene.next()
    (item,) = [item async for item in transaction]
    assert isinstance(item, Truncate)
    assert item.cascade


@pytest.mark.asyncio
async def test_a_transaction_names_itself_by_xid_and_lsn() -> None:
    scene = Scene()
    put(scene.feed, *encoded(0x1_0000_00FF, "1", xid=700))
    assert repr(await scene.next()) == "transaction 700 (commit 1/FF)"


# --- empty transactions


@pytest.mark.asyncio
async def test_an_empty_transaction_is_passed_over_and_confirmed() -> None:
    scene = Scene()
    waiting = await begun(scene.delivery.next_transaction())
    put(scene.feed, *encoded(100), *encoded(200))
    await settle()
    assert not waiting.done()
    assert scene.flushed == 200 + LENGTH
    waiting.cancel()


@pytest.mark.asyncio
async def test_an_empty_transaction_is_not_confirmed_before_an_earlier_one() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"), *encoded(200), *encoded(300, "3"))
    first = await scene.take(commit_lsn=100)
    await scene.next()
    assert scene.flushed == 0
    await scene.delivery.acknowledge(first)
    assert scene.flushed == 200 + LENGTH


# --- acknowledging


@pytest.mark.asyncio
async def test_an_acknowledged_transaction_is_confirmed_to_its_end() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"))
    await scene.delivery.acknowledge(await scene.take(commit_lsn=100))
    assert scene.flushed == 100 + LENGTH


@pytest.mark.asyncio
@pytest.mark.parametrize("seen", [0, 1, 2])
async def test_an_acknowledgement_before_the_end_was_read_is_refused(seen: int) -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1", "2"))
    transaction = await scene.next()
    for _ in range(seen):
        await anext(transaction)
    with pytest.raises(AckRefused, match="was not read to its end"):
        await scene.delivery.acknowledge(transaction)
    assert scene.flushed == 0


@pytest.mark.asyncio
async def test_a_transaction_that_was_passed_over_cannot_be_acknowledged() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1", "2"), *encoded(200, "3"))
    first = await scene.next()
    await scene.next()
    with pytest.raises(AckRefused):
        await scene.delivery.acknowledge(first)


@pytest.mark.asyncio
async def test_acknowledgements_out_of_order_confirm_only_what_has_no_gap() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"), *encoded(200, "2"), *encoded(300, "3"))
    one, two, three = [await scene.take(commit_lsn=lsn) for lsn in (100, 200, 300)]
    await scene.delivery.acknowledge(two)
    assert scene.flushed == 0
    await scene.delivery.acknowledge(one)
    assert scene.flushed == 200 + LENGTH
    await scene.delivery.acknowledge(three)
    assert scene.flushed == 300 + LENGTH


# --- keepalives


@pytest.mark.asyncio
async def test_a_keepalive_is_confirmed_when_nothing_is_on_its_way() -> None:
    scene = Scene()
    scene.feed.keepalive(5000)
    assert scene.flushed == 5000


@pytest.mark.asyncio
async def test_a_keepalive_is_confirmed_when_all_was_read_and_acknowledged() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"))
    scene.feed.keepalive(5000)
    transaction = await scene.take(commit_lsn=100)
    assert scene.flushed == 0
    await scene.delivery.acknowledge(transaction)
    assert scene.flushed == 5000


@pytest.mark.asyncio
async def test_a_keepalive_is_not_confirmed_while_something_is_unread() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"))
    scene.feed.keepalive(5000)
    assert scene.flushed == 0


@pytest.mark.asyncio
async def test_a_keepalive_is_not_confirmed_while_something_is_unacknowledged() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"))
    await scene.take(commit_lsn=100)
    scene.feed.keepalive(5000)
    waiting = await begun(scene.delivery.next_transaction())
    assert scene.flushed == 0
    waiting.cancel()


@pytest.mark.asyncio
@pytest.mark.parametrize("arrived", [1, 2])
async def test_a_keepalive_is_not_confirmed_while_a_transaction_is_half_read(arrived: int) -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1")[:arrived])
    waiting = await begun(scene.delivery.next_transaction())
    scene.feed.keepalive(5000)
    await settle()
    assert scene.flushed == 0
    waiting.cancel()


@pytest.mark.asyncio
async def test_a_keepalive_before_what_arrived_later_is_not_confirmed_after_it() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"))
    scene.feed.keepalive(150)
    put(scene.feed, *encoded(200, "2"))
    await scene.delivery.acknowledge(await scene.take(commit_lsn=100))
    assert scene.flushed == 100 + LENGTH


@pytest.mark.asyncio
async def test_a_keepalive_of_a_lost_session_does_not_confirm_what_was_unread() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"))
    await scene.delivery.acknowledge(await scene.take(commit_lsn=100))
    put(scene.feed, *encoded(200, "2"))
    scene.feed.keepalive(5000)
    scene.delivery.end_session()
    waiting = await begun(scene.delivery.next_transaction())
    assert scene.flushed == 100 + LENGTH
    put(scene.reconnect(), *encoded(200, "2"))
    transaction = await at_once(waiting)
    assert transaction is not None
    assert transaction.commit_lsn == 200


# --- after a reconnect


@pytest.mark.asyncio
async def test_an_acknowledged_transaction_that_is_sent_again_is_dropped() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"))
    await scene.delivery.acknowledge(await scene.take(commit_lsn=100))
    put(scene.reconnect(), *encoded(100, "1"), *encoded(200, "2"))
    transaction = await scene.next()
    assert transaction.commit_lsn == 200


@pytest.mark.asyncio
async def test_dropping_what_was_acknowledged_leaves_nothing_outstanding() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"))
    await scene.delivery.acknowledge(await scene.take(commit_lsn=100))
    put(scene.reconnect(), *encoded(100, "1"), *encoded(200, "2"))
    await scene.delivery.acknowledge(await scene.take(commit_lsn=200))
    assert scene.flushed == 200 + LENGTH
    scene.feed.keepalive(5000)
    assert scene.flushed == 5000


@pytest.mark.asyncio
async def test_what_was_acknowledged_out_of_order_is_dropped_when_it_is_sent_again() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"), *encoded(200, "2"), *encoded(300, "3"))
    await scene.take(commit_lsn=100)
    await scene.delivery.acknowledge(await scene.take(commit_lsn=200))
    put(scene.reconnect(), *encoded(100, "1"), *encoded(200, "2"), *encoded(300, "3"))
    again = await scene.take(commit_lsn=100)
    last = await scene.take(commit_lsn=300)
    await scene.delivery.acknowledge(again)
    await scene.delivery.acknowledge(last)
    assert scene.flushed == 300 + LENGTH


@pytest.mark.asyncio
async def test_what_is_confirmed_while_it_is_being_dropped_is_not_outstanding_for_ever() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"), *encoded(200, "2"))
    first = await scene.take(commit_lsn=100)
    await scene.delivery.acknowledge(await scene.take(commit_lsn=200))
    dropped = encoded(200, "2")
    put(scene.reconnect(), *encoded(100, "1"), *dropped[:2])
    await scene.take(commit_lsn=100)
    waiting = await begun(scene.delivery.next_transaction())
    await scene.delivery.acknowledge(first)
    assert scene.flushed == 200 + LENGTH
    put(scene.feed, *dropped[2:], *encoded(300, "3"))
    third = await at_once(waiting)
    assert third is not None
    await at_once(rows_of(third))
    await scene.delivery.acknowledge(third)
    assert scene.flushed == 300 + LENGTH


@pytest.mark.asyncio
async def test_unacknowledged_transactions_that_the_host_has_passed_come_again_in_order() -> None:
    scene = Scene()
    both = [*encoded(100, "1"), *encoded(200, "2")]
    put(scene.feed, *both)
    for lsn in (100, 200):
        await scene.take(commit_lsn=lsn)
    put(scene.reconnect(), *both)
    assert await at_once(ids(await scene.next())) == ["1"]
    assert await at_once(ids(await scene.next())) == ["2"]


@pytest.mark.asyncio
async def test_a_transaction_that_was_unread_when_its_session_ended_comes_again_once() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"), *encoded(200, "2"))
    put(scene.reconnect(), *encoded(100, "1"))
    assert (await scene.next()).commit_lsn == 100
    waiting = await begun(scene.delivery.next_transaction())
    waiting.cancel()


ROWS = ["1", "2", "3", "4"]
WHOLE = encoded(100, *ROWS)


@pytest.mark.asyncio
@pytest.mark.parametrize("arrived", range(3, len(WHOLE) + 1))
@pytest.mark.parametrize("wanted", range(len(ROWS) + 1))
async def test_the_transaction_in_the_hosts_hands_goes_on_where_it_was(
    arrived: int, wanted: int
) -> None:
    scene = Scene()
    put(scene.feed, *WHOLE[:arrived])
    transaction = await scene.next()
    seen = [id_of(await anext(transaction)) for _ in range(min(wanted, arrived - 2, len(ROWS)))]
    scene.delivery.end_session()
    assert transaction.lost
    reading = asyncio.create_task(ids(transaction))
    await settle()
    put(scene.reconnect(), *WHOLE, *encoded(200, "5"))
    assert seen + await at_once(reading) == ROWS
    await at_once(scene.delivery.acknowledge(transaction))
    assert scene.flushed == 100 + LENGTH
    assert (await scene.next()).commit_lsn == 200


@pytest.mark.asyncio
@pytest.mark.parametrize("losses", [2, 3, 5])
async def test_it_goes_on_through_several_sessions(losses: int) -> None:
    scene = Scene()
    put(scene.feed, *WHOLE[:3])
    transaction = await scene.next()
    seen = [id_of(await anext(transaction))]
    for _ in range(losses):
        put(scene.reconnect(), *WHOLE[:4])
        if len(seen) < 2:
            seen.append(id_of(await at_once(anext(transaction))))
        waiting = await begun(anext(transaction))
        waiting.cancel()
        await settle()
    put(scene.reconnect(), *WHOLE)
    assert seen + await at_once(ids(transaction)) == ROWS


@pytest.mark.asyncio
async def test_what_arrived_whole_is_read_on_without_a_session() -> None:
    scene = Scene()
    put(scene.feed, *WHOLE)
    transaction = await scene.next()
    await anext(transaction)
    scene.delivery.end_session()
    assert await at_once(ids(transaction)) == ROWS[1:]
    assert transaction.complete


@pytest.mark.asyncio
async def test_a_transaction_that_was_not_whole_waits_for_the_next_session() -> None:
    scene = Scene()
    put(scene.feed, *WHOLE[:-1])
    transaction = await scene.next()
    await anext(transaction)
    scene.delivery.end_session()
    reading = await begun(ids(transaction))
    put(scene.reconnect(), *WHOLE)
    assert await at_once(reading) == ROWS[1:]


@pytest.mark.asyncio
async def test_the_one_in_hand_goes_on_behind_earlier_ones_that_are_not_acknowledged() -> None:
    scene = Scene()
    put(scene.feed, *encoded(50, "0"), *WHOLE[:4])
    earlier = await scene.take(commit_lsn=50)
    transaction = await scene.next()
    seen = [id_of(await anext(transaction))]
    scene.delivery.end_session()
    reading = await begun(ids(transaction))
    put(scene.reconnect(), *encoded(50, "0"), *WHOLE)
    assert seen + await at_once(reading) == ROWS
    await at_once(scene.delivery.acknowledge(earlier))
    await at_once(scene.delivery.acknowledge(transaction))
    assert scene.flushed == 100 + LENGTH


@pytest.mark.asyncio
async def test_an_earlier_one_passed_over_for_the_one_in_hand_comes_with_the_next_session() -> None:
    scene = Scene()
    put(scene.feed, *encoded(50, "0"), *WHOLE[:4])
    await scene.take(commit_lsn=50)
    transaction = await scene.next()
    await anext(transaction)
    put(scene.reconnect(), *encoded(50, "0"), *WHOLE)
    await at_once(ids(transaction))
    await at_once(scene.delivery.acknowledge(transaction))
    assert scene.flushed == 0
    put(scene.reconnect(), *encoded(50, "0"), *WHOLE, *encoded(200, "5"))
    await scene.delivery.acknowledge(await scene.take(commit_lsn=50))
    assert scene.flushed == 100 + LENGTH
    assert (await scene.next()).commit_lsn == 200


@pytest.mark.asyncio
async def test_an_unread_rest_is_left_when_the_session_is_over_and_comes_again() -> None:
    scene = Scene()
    put(scene.feed, *WHOLE[:3])
    transaction = await scene.next()
    waiting = await begun(scene.delivery.next_transaction())
    put(scene.reconnect(), *WHOLE)
    again = await at_once(waiting)
    assert again is not None
    assert again is not transaction
    assert await at_once(ids(again)) == ROWS


@pytest.mark.asyncio
async def test_an_acknowledgement_waits_until_the_slot_is_ours_again_and_counts() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"))
    transaction = await scene.take(commit_lsn=100)
    scene.delivery.end_session()
    assert transaction.lost
    acknowledging = await begun(scene.delivery.acknowledge(transaction))
    assert scene.flushed == 0
    scene.reconnect()
    await at_once(acknowledging)
    assert scene.flushed == 100 + LENGTH
    assert not transaction.lost


# --- when the slot is lost to another


@pytest.mark.asyncio
async def test_an_acknowledgement_after_another_moved_the_slot_says_so() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"), *encoded(200, "2"))
    await scene.delivery.acknowledge(await scene.take(commit_lsn=100))
    transaction = await scene.take(commit_lsn=200)
    scene.delivery.end_session()
    acknowledging = await begun(scene.delivery.acknowledge(transaction))
    scene.reconnect(confirmed=200 + LENGTH)
    with pytest.raises(LeaseLost, match="another consumer moved the slot"):
        await at_once(acknowledging)
    assert transaction.lost


@pytest.mark.asyncio
async def test_reading_on_after_another_moved_the_slot_says_so() -> None:
    scene = Scene()
    scene.feed.keepalive(50)
    put(scene.feed, *WHOLE[:4])
    transaction = await scene.next()
    await anext(transaction)
    scene.delivery.end_session()
    reading = await begun(ids(transaction))
    put(scene.reconnect(confirmed=100 + LENGTH), *encoded(200, "5"))
    with pytest.raises(LeaseLost, match="another consumer moved the slot"):
        await at_once(reading)
    assert (await scene.next()).commit_lsn == 200


@pytest.mark.asyncio
async def test_a_transaction_that_does_not_come_again_is_lost() -> None:
    scene = Scene()
    put(scene.feed, *WHOLE[:4])
    transaction = await scene.next()
    await anext(transaction)
    scene.delivery.end_session()
    reading = await begun(ids(transaction))
    put(scene.reconnect(), *encoded(200, "5"))
    with pytest.raises(LeaseLost):
        await at_once(reading)
    assert await at_once(ids(await scene.next())) == ["5"]


@pytest.mark.asyncio
async def test_another_transaction_at_the_same_lsn_is_not_taken_for_the_interrupted_one() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1", "2", xid=700)[:3])
    transaction = await scene.next()
    await anext(transaction)
    put(scene.reconnect(), *encoded(100, "8", "9", xid=701))
    with pytest.raises(LeaseLost):
        await at_once(ids(transaction))
    assert await at_once(ids(await scene.next())) == ["8", "9"]


@pytest.mark.asyncio
async def test_what_another_has_left_to_us_comes_again_and_can_be_acknowledged() -> None:
    scene = Scene()
    scene.feed.keepalive(50)
    both = [*encoded(100, "1"), *encoded(200, "2")]
    put(scene.feed, *both)
    await scene.take(commit_lsn=100)
    second = await scene.take(commit_lsn=200)
    put(scene.reconnect(confirmed=100 + LENGTH), *encoded(200, "2"))
    with pytest.raises(LeaseLost):
        await at_once(scene.delivery.acknowledge(second))
    await scene.delivery.acknowledge(await scene.take(commit_lsn=200))
    assert scene.flushed == 200 + LENGTH


@pytest.mark.asyncio
async def test_a_stop_ends_iteration_and_what_waits_in_a_transaction() -> None:
    scene = Scene()
    put(scene.feed, *WHOLE[:3])
    transaction = await scene.next()
    await anext(transaction)
    reading = await begun(anext(transaction))
    scene.delivery.close()
    with pytest.raises(LeaseLost, match="the keeper was stopped"):
        await at_once(reading)
    assert await at_once(scene.delivery.next_transaction()) is None


@pytest.mark.asyncio
async def test_a_stop_ends_waiting_for_the_next_transaction() -> None:
    scene = Scene()
    waiting = await begun(scene.delivery.next_transaction())
    scene.delivery.close()
    assert await at_once(waiting) is None


@pytest.mark.asyncio
async def test_an_acknowledgement_that_waits_for_the_slot_ends_with_a_stop() -> None:
    scene = Scene()
    put(scene.feed, *encoded(100, "1"))
    transaction = await scene.take(commit_lsn=100)
    scene.delivery.end_session()
    acknowledging = await begun(scene.delivery.acknowledge(transaction))
    scene.delivery.close()
    with pytest.raises(LeaseLost, match="the keeper was stopped"):
        await at_once(acknowledging)
    assert scene.flushed == 0


@pytest.mark.asyncio
async def test_iteration_goes_on_after_it_was_reopened() -> None:
    scene = Scene()
    scene.delivery.close()
    assert await at_once(scene.delivery.next_transaction()) is None
    scene.delivery.reopen()
    put(scene.reconnect(), *encoded(100, "1"))
    assert (await scene.next()).commit_lsn == 100


@pytest.mark.asyncio
async def test_a_failure_is_raised_to_all_that_wait_and_can_be_taken_back() -> None:
    scene = Scene()
    put(scene.feed, *WHOLE[:3])
    transaction = await scene.next()
    await anext(transaction)
    reading = await begun(anext(transaction))
    failure = SlotFailed("it failed.", error_class="configuration", remedy="mend it.")
    scene.delivery.end_session()
    scene.delivery.fail(failure)
    with pytest.raises(SlotFailed) as raised:
        await at_once(reading)
    assert raised.value is failure
    with pytest.raises(SlotFailed):
        await at_once(scene.delivery.next_transaction())
    scene.delivery.fail(None)
    put(scene.reconnect(), *WHOLE)
    assert await at_once(ids(transaction)) == ROWS[1:]


# --- backpressure


@pytest.mark.asyncio
async def test_a_feed_is_full_at_its_limit() -> None:
    scene = Scene(limit=100)
    scene.feed.put([WHOLE[0]], 99)
    assert not scene.feed.full
    scene.feed.put([WHOLE[1]], 1)
    assert scene.feed.full
    assert scene.delivery.waiting_bytes == 100


@pytest.mark.asyncio
async def test_there_is_room_again_when_half_is_read() -> None:
    scene = Scene(limit=100)
    scene.feed.put(WHOLE[:3], 40)
    scene.feed.put(WHOLE[3:4], 40)
    scene.feed.put(WHOLE[4:], 40)
    transaction = await scene.next()
    room = await begun(scene.feed.room())
    await anext(transaction)
    await anext(transaction)
    await settle()
    assert not room.done()
    await anext(transaction)
    await at_once(room)
    assert scene.delivery.waiting_bytes == 40
    assert not scene.feed.full


@pytest.mark.asyncio
async def test_there_is_room_at_once_where_little_waits() -> None:
    scene = Scene(limit=100)
    scene.feed.put(WHOLE, 50)
    await at_once(scene.feed.room())


@pytest.mark.asyncio
async def test_all_room_is_given_back_when_all_was_read() -> None:
    scene = Scene(limit=100)
    scene.feed.put(WHOLE, 100)
    transaction = await scene.next()
    await rows_of(transaction)
    await scene.delivery.acknowledge(transaction)
    waiting = await begun(scene.delivery.next_transaction())
    await at_once(scene.feed.room())
    assert scene.delivery.waiting_bytes == 0
    waiting.cancel()


@pytest.mark.asyncio
async def test_waiting_for_room_ends_with_the_session() -> None:
    scene = Scene(limit=100)
    scene.feed.put(WHOLE, 100)
    room = await begun(scene.feed.room())
    scene.delivery.end_session()
    await at_once(room)
    assert scene.delivery.waiting_bytes == 0


@pytest.mark.asyncio
async def test_what_arrives_after_the_end_of_a_session_is_not_taken() -> None:
    scene = Scene()
    old = scene.feed
    scene.reconnect()
    put(old, *encoded(100, "1"))
    old.keepalive(5000)
    waiting = await begun(scene.delivery.next_transaction())
    assert scene.flushed == 0
    assert scene.delivery.waiting_bytes == 0
    waiting.cancel()


# --- logical messages


@pytest.mark.asyncio
async def test_a_message_outside_of_transactions_is_handed_over_like_one() -> None:
    scene = Scene()
    put(scene.feed, pgoutput.message(500, "note", b"hello", transactional=False))
    transaction = await scene.next()
    assert (transaction.xid, transaction.commit_lsn, transaction.commit_time) == (0, 499, None)
    (item,) = [item async for item in transaction]
    assert isinstance(item, Message)
    assert (item.prefix, item.content) == ("note", b"hello")
    assert transaction.complete
    await scene.delivery.acknowledge(transaction)
    assert scene.flushed == 500


@pytest.mark.asyncio
async def test_such_a_message_must_be_read_before_it_is_acknowledged() -> None:
    scene = Scene()
    put(scene.feed, pgoutput.message(500, "note", b"hello", transactional=False))
    transaction = await scene.next()
    with pytest.raises(AckRefused):
        await scene.delivery.acknowledge(transaction)


@pytest.mark.asyncio
async def test_an_acknowledged_message_that_is_sent_again_is_dropped() -> None:
    scene = Scene()
    note = pgoutput.message(500, "note", b"hello", transactional=False)
    put(scene.feed, note)
    await scene.delivery.acknowledge(await _read_whole(scene))
    put(scene.reconnect(), note, *encoded(600, "1"))
    assert (await scene.next()).commit_lsn == 600


@pytest.mark.asyncio
async def test_a_commit_where_such_a_message_ends_is_another_transaction() -> None:
    scene = Scene()
    put(scene.feed, pgoutput.message(500, "note", b"hello", transactional=False))
    put(scene.feed, *encoded(500, "1"))
    note = await _read_whole(scene)
    transaction = await _read_whole(scene)
    await scene.delivery.acknowledge(note)
    assert scene.flushed == 500
    await scene.delivery.acknowledge(transaction)
    assert scene.flushed == 500 + LENGTH


@pytest.mark.asyncio
async def test_an_unacknowledged_message_comes_again() -> None:
    scene = Scene()
    note = pgoutput.message(500, "note", b"hello", transactional=False)
    put(scene.feed, note)
    await _read_whole(scene)
    put(scene.reconnect(), note)
    assert (await scene.next()).commit_lsn == 499


@pytest.mark.asyncio
async def test_a_message_before_the_interrupted_transaction_does_not_end_it() -> None:
    scene = Scene()
    note = pgoutput.message(50, "note", b"hello", transactional=False)
    put(scene.feed, note, *WHOLE[:3])
    await _read_whole(scene)
    transaction = await scene.next()
    seen = [id_of(await anext(transaction))]
    put(scene.reconnect(), note, *WHOLE)
    assert seen + await at_once(ids(transaction)) == ROWS


@pytest.mark.asyncio
async def test_a_message_within_a_transaction_is_one_of_its_items() -> None:
    scene = Scene()
    begin, relation, insert, commit = encoded(100, "1")
    put(scene.feed, begin, pgoutput.message(90, "note", b"hello"), relation, insert, commit)
    transaction = await scene.next()
    kinds = [type(item) async for item in transaction]
    assert kinds == [Message, Insert]
    assert transaction.commit_lsn == 100


async def _read_whole(scene: Scene) -> Transaction:
    transaction = await scene.next()
    async for _ in transaction:
        pass
    return transaction


# --- what cannot be decoded

BAD = pgoutput.insert(99, ["1"])
"""An insert into a table that was not described."""


@pytest.mark.asyncio
async def test_what_cannot_be_decoded_is_reported_and_raised_to_the_host() -> None:
    scene = Scene()
    put(scene.feed, *WHOLE[:3], BAD, *WHOLE[3:])
    transaction = await scene.next()
    await anext(transaction)
    with pytest.raises(DecodeError) as raised:
        await anext(transaction)
    assert scene.reported == [raised.value]


@pytest.mark.asyncio
async def test_a_transaction_that_cannot_be_decoded_never_becomes_complete() -> None:
    scene = Scene()
    put(scene.feed, *WHOLE[:3], BAD, *WHOLE[3:])
    transaction = await scene.next()
    await anext(transaction)
    for _ in range(len(WHOLE)):
        with pytest.raises(DecodeError):
            await at_once(anext(transaction))
    with pytest.raises(AckRefused):
        await scene.delivery.acknowledge(transaction)


@pytest.mark.asyncio
async def test_a_beginning_that_cannot_be_decoded_is_raised_by_the_iteration() -> None:
    scene = Scene()
    put(scene.feed, WHOLE[0], BAD)
    with pytest.raises(DecodeError):
        await at_once(scene.delivery.next_transaction())
    assert len(scene.reported) == 1


# --- batches


@pytest.mark.asyncio
async def test_batches_hold_what_is_there_at_once() -> None:
    scene = Scene()
    put(scene.feed, *WHOLE[:4])
    transaction = await scene.next()
    batches = transaction.batches()
    assert [id_of(item) for item in await at_once(anext(batches))] == ["1", "2"]
    following = await begun(anext(batches))
    put(scene.feed, *WHOLE[4:])
    assert [id_of(item) for item in await at_once(following)] == ["3", "4"]
    with pytest.raises(StopAsyncIteration):
        await anext(batches)
    assert transaction.complete


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("size", "expected"), [(1, [1, 1, 1, 1]), (3, [3, 1]), (4, [4]), (100, [4])]
)
async def test_batches_are_no_larger_than_asked_for(size: int, expected: list[int]) -> None:
    scene = Scene()
    put(scene.feed, *WHOLE, *encoded(200, "5"))
    transaction = await scene.next()
    batches = [batch async for batch in transaction.batches(size)]
    assert [len(batch) for batch in batches] == expected
    assert [id_of(item) for batch in batches for item in batch] == ROWS


@pytest.mark.asyncio
async def test_batches_go_on_in_the_next_session() -> None:
    scene = Scene()
    put(scene.feed, *WHOLE[:4])
    transaction = await scene.next()
    batches = transaction.batches()
    seen = [id_of(item) for item in await at_once(anext(batches))]
    put(scene.reconnect(), *WHOLE)
    async for batch in batches:
        seen += [id_of(item) for item in batch]
    assert seen == ROWS


# --- any schedule


@dataclass
class _Log:
    """A server's log and slot, as one session after another sees it."""

    sizes: list[int]
    confirmed: int = 0
    sent: int = 0
    messages: list[tuple[bytes, int]] = field(default_factory=list)

    def rows(self) -> list[str]:
        return [name for number in range(len(self.sizes)) for name in self.names(number)]

    def names(self, number: int) -> list[str]:
        return [f"{number}.{row}" for row in range(self.sizes[number])]

    def begin(self, start_lsn: int) -> None:
        """Prepare what a session from ``start_lsn`` is sent, each with the LSN sent by then."""
        self.sent = 0
        self.messages = []
        for number in range(len(self.sizes)):
            commit_lsn = 1000 * (number + 1)
            if commit_lsn < max(start_lsn, self.confirmed):
                continue
            *inner, last = encoded(commit_lsn, *self.names(number))
            self.messages += [(message, commit_lsn) for message in inner]
            self.messages.append((last, commit_lsn + LENGTH))

    def next(self, count: int) -> list[bytes]:
        taken = self.messages[self.sent : self.sent + count]
        self.sent += len(taken)
        return [message for message, _ in taken]

    @property
    def position(self) -> int | None:
        """What a keepalive tells now; None before anything was sent."""
        return self.messages[self.sent - 1][1] if self.sent else None


class _Run:
    """A host that takes one step when it is told to, against sessions that come and go."""

    def __init__(self, sizes: list[int]) -> None:
        self.log = _Log(sizes)
        self.delivery = Delivery(MIB, _raise)
        self.feed: Feed | None = None
        self.steps = asyncio.Semaphore(0)
        self.seen: list[str] = []

    async def step(self) -> None:
        await self.steps.acquire()

    def apply(self, event: tuple[str, int]) -> None:
        kind, count = event
        match kind:
            case "lose":
                self.delivery.end_session()
                self.feed = None
            case "reply":
                if self.feed is not None:
                    self.log.confirmed = max(self.log.confirmed, self.delivery.progress.flushed)
            case "host":
                for _ in range(count):
                    self.steps.release()
            case "stream":
                self._stream(count)

    def _stream(self, count: int) -> None:
        if self.feed is None:
            assert not self.delivery.progress.adopt(self.log.confirmed)
            self.feed = self.delivery.begin_session(moved_by_another=False)
            self.log.begin(self.delivery.progress.flushed)
        if count == 0:
            if self.log.position is not None:
                self.feed.keepalive(self.log.position)
            return
        messages = self.log.next(count)
        if messages:
            put(self.feed, *messages)

    async def play(self, host: asyncio.Task[None], schedule: list[tuple[str, int]]) -> None:
        for event in schedule:
            self.apply(event)
            await settle(5)
            if host.done():
                return
        for event in [("lose", 0), ("stream", 10_000), ("host", 10_000), ("stream", 0)]:
            self.apply(event)
            await settle(5)
        await settle(120)
        self.delivery.close()
        await settle()


def _raise(error: Exception) -> None:
    raise error


EVENTS = st.one_of(
    st.tuples(st.just("stream"), st.integers(0, 6)),
    st.tuples(st.just("host"), st.integers(1, 4)),
    st.tuples(st.just("lose"), st.just(0)),
    st.tuples(st.just("reply"), st.just(0)),
)
SIZES = st.lists(st.integers(0, 4), min_size=1, max_size=6)


@settings(deadline=None, max_examples=200)
@given(SIZES, st.lists(EVENTS, max_size=40))
def test_each_row_reaches_a_host_that_acknowledges_exactly_once_and_in_order(
    sizes: list[int], schedule: list[tuple[str, int]]
) -> None:
    async def host(run: _Run) -> None:
        while (transaction := await run.delivery.next_transaction()) is not None:
            await run.step()
            async for item in transaction:
                run.seen.append(id_of(item))
                await run.step()
            await run.delivery.acknowledge(transaction)
            await run.step()

    async def play() -> _Run:
        run = _Run(sizes)
        task = asyncio.create_task(host(run))
        await run.play(task, schedule)
        await task
        return run

    run = asyncio.run(play())
    assert run.seen == run.log.rows()
    assert run.delivery.progress.outstanding == 0
    assert run.delivery.progress.flushed == 1000 * len(sizes) + LENGTH


@settings(deadline=None, max_examples=200)
@given(
    SIZES,
    st.lists(EVENTS, max_size=40),
    st.lists(st.sampled_from(["now", "later", "never", "half"]), min_size=12, max_size=12),
)
def test_any_acknowledgements_lose_nothing_and_bring_nothing_acknowledged_again(  # noqa: C901  (a host and what it remembers)
    sizes: list[int], schedule: list[tuple[str, int]], habits: list[str]
) -> None:
    acknowledged: list[int] = []
    handed_over: list[int] = []
    late: list[Transaction] = []

    async def acknowledge(run: _Run, transaction: Transaction) -> None:
        await run.delivery.acknowledge(transaction)
        acknowledged.append(transaction.commit_lsn)

    async def read(run: _Run, transaction: Transaction, habit: str) -> None:
        rows: list[str] = []
        expected = run.log.names(transaction.commit_lsn // 1000 - 1)
        async for item in transaction:
            rows.append(id_of(item))
            assert rows == expected[: len(rows)]
            await run.step()
            if habit == "half":
                return
        assert rows == expected
        if habit == "later":
            late.append(transaction)
            return
        if habit == "now":
            await acknowledge(run, transaction)
            while late:
                await acknowledge(run, late.pop())

    async def host(run: _Run) -> None:
        while (transaction := await run.delivery.next_transaction()) is not None:
            assert transaction.commit_lsn not in acknowledged
            handed_over.append(transaction.commit_lsn)
            await run.step()
            await read(run, transaction, habits[len(handed_over) % len(habits)])

    async def play() -> _Run:
        run = _Run(sizes)
        task = asyncio.create_task(host(run))
        await run.play(task, schedule)
        await task
        return run

    run = asyncio.run(play())
    flushed = run.delivery.progress.flushed
    filled = [1000 * (number + 1) for number, size in enumerate(sizes) if size]
    assert [lsn for lsn in filled if lsn < flushed and lsn not in acknowledged] == []
    assert set(handed_over) == set(filled)
