"""A server that is stopped under a keeper, and a keeper that is stopped under a server."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.source import errors_of, ids_of, reach, read, until

if TYPE_CHECKING:
    import fsm
    from fsm.embedded import Mode, Postgres
    from tests.support.source import Source

BOUND = 5.0
"""Seconds. Without help the server would wait for ever; the keeper lets go after about one."""


async def seconds_to_stop(server: Postgres, mode: Mode = "fast") -> float:
    began = time.monotonic()
    await asyncio.to_thread(server.stop, mode, 20)
    return time.monotonic() - began


def classes_of(keeper: fsm.Keeper) -> set[str | None]:
    return {record.error_class for record in errors_of(keeper)}


@pytest.mark.asyncio
async def test_a_fast_stop_ends_quickly_where_all_is_acknowledged(own_source: Source) -> None:
    source, server = own_source, own_source.database.server
    async with source.keeper(lease=30) as keeper:
        await reach(keeper, "Streaming")
        source.insert_each(1, 100)
        assert await read(keeper, 100) == list(range(1, 101))
        source.reconnect()
        assert await seconds_to_stop(server) < BOUND
        await reach(keeper, "BackingOff")
        assert errors_of(keeper)[0].error_class == "server_starting_or_stopping"
        await asyncio.to_thread(server.start)
        source.insert(101, 101)
        assert await read(keeper, 1) == [101]


@pytest.mark.asyncio
async def test_a_fast_stop_ends_quickly_where_a_transaction_is_not_acknowledged(
    own_source: Source,
) -> None:
    source, server = own_source, own_source.database.server
    async with source.keeper(lease=30) as keeper:
        await reach(keeper, "Streaming")
        source.insert(1, 1)
        transaction = await anext(keeper)
        assert await ids_of(transaction) == [1]
        source.reconnect()
        assert await seconds_to_stop(server) < BOUND
        assert await until(lambda: errors_of(keeper))
        assert errors_of(keeper)[0].error_class == "server_starting_or_stopping"
        assert keeper.health.flushed <= transaction.commit_lsn
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(30):
            await keeper.ack(transaction)
        source.insert(2, 2)
        assert await read(keeper, 1) == [2]
        assert await until(lambda: source.confirmed() >= (transaction.end_lsn or 0))


@pytest.mark.asyncio
async def test_a_fast_stop_ends_quickly_where_nothing_was_read(own_source: Source) -> None:
    source, server = own_source, own_source.database.server
    async with source.keeper(lease=30) as keeper:
        await reach(keeper, "Streaming")
        source.insert_each(1, 100)
        assert await until(lambda: keeper.health.waiting_bytes)
        source.reconnect()
        assert await seconds_to_stop(server) < BOUND
        await asyncio.to_thread(server.start)
        assert await read(keeper, 100) == list(range(1, 101))


@pytest.mark.asyncio
async def test_a_host_that_acknowledges_during_the_stop_is_heard(own_source: Source) -> None:
    source, server = own_source, own_source.database.server
    async with source.keeper(lease=30) as keeper:
        await reach(keeper, "Streaming")
        source.insert(1, 1)
        transaction = await anext(keeper)
        assert await ids_of(transaction) == [1]
        source.reconnect()
        stopping = asyncio.create_task(seconds_to_stop(server))
        await asyncio.sleep(0.3)
        await keeper.ack(transaction)
        assert await stopping < BOUND
        await asyncio.to_thread(server.start)
        source.insert(2, 2)
        # Before 17 a server does not keep a position over its stop that it was only told of.
        assert await read(keeper, 1) == [2]
        assert await until(lambda: source.confirmed() >= (transaction.end_lsn or 0))


@pytest.mark.asyncio
async def test_a_stopping_server_is_not_answered_in_a_spin(own_source: Source) -> None:
    """Each reply is answered with the next question: a client that answers at once spins."""
    source, server = own_source, own_source.database.server
    async with source.keeper(lease=30) as keeper:
        await reach(keeper, "Streaming")
        source.insert(1, 1)
        await anext(keeper)
        source.reconnect()
        before = time.process_time()
        await seconds_to_stop(server)
        assert time.process_time() - before < 1.0
        await reach(keeper, "BackingOff", "Locking")


@pytest.mark.asyncio
async def test_a_fast_stop_ends_quickly_under_a_waiter(own_source: Source) -> None:
    source, server = own_source, own_source.database.server
    async with source.keeper(lease=30) as holder:
        await reach(holder, "Streaming")
        async with source.keeper(lease=30) as waiter:
            assert await until(lambda: source.lock_pids(granted=False))
            source.reconnect()
            assert await seconds_to_stop(server) < BOUND
            assert await until(lambda: errors_of(waiter) and errors_of(holder))
            assert classes_of(waiter) <= {"server_starting_or_stopping", "transient_network"}
            await asyncio.to_thread(server.start)
            source.insert(1, 1)
            first = {
                asyncio.create_task(read(holder, 1)),
                asyncio.create_task(read(waiter, 1)),
            }
            done, rest = await asyncio.wait(first, timeout=40, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in done] == [[1]]
            for task in rest:
                task.cancel()
            await asyncio.wait(rest)


@pytest.mark.asyncio
async def test_an_immediate_stop_is_survived(own_source: Source) -> None:
    source, server = own_source, own_source.database.server
    async with source.keeper(lease=30) as keeper:
        await reach(keeper, "Streaming")
        source.insert(1, 1)
        assert await read(keeper, 1) == [1]
        assert await until(lambda: source.confirmed() >= keeper.health.flushed)
        source.reconnect()
        assert await seconds_to_stop(server, "immediate") < BOUND
        await reach(keeper, "BackingOff")
        await asyncio.to_thread(server.start)
        source.insert(2, 2)
        assert await read(keeper, 1) == [2]


@pytest.mark.asyncio
async def test_a_server_that_asks_for_signs_of_life_is_not_taken_to_be_stopping(
    source: Source,
) -> None:
    """wal_sender_timeout makes it ask as well; a transaction is open in the host's hands."""
    async with source.keeper(lease=1) as keeper:
        await reach(keeper, "Streaming")
        source.insert(1, 1)
        transaction = await anext(keeper)
        await asyncio.sleep(4)
        assert errors_of(keeper) == []
        assert await ids_of(transaction) == [1]
        await keeper.ack(transaction)
