"""An idle publication on a busy server: what the keeper confirms although nothing is published."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest

from fsm.postgres.lsn import parse_lsn
from tests.support.source import confirmed_up_to, errors_of, ids_of, reach, read, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import fsm
    from tests.support.source import Source

LEASE = 2.0
"""Seconds; a status is sent ten times in it."""


def be_busy(source: Source, rows: int = 2000) -> int:
    """Write to a table that nobody published, and give the position after it."""
    source.database.sql("CREATE TABLE IF NOT EXISTS unpublished (x text)")
    source.database.sql(
        f"INSERT INTO unpublished SELECT repeat('x', 100) FROM generate_series(1, {rows})"
    )
    return source.wal_position()


@asynccontextmanager
async def waiting_host(keeper: fsm.Keeper) -> AsyncIterator[None]:
    """The host waits for a transaction, and none comes.

    Before 15 a transaction with nothing published reaches us, and is passed over when it is read.
    """
    waiting = asyncio.create_task(anext(keeper))
    try:
        yield
        assert not waiting.done()
    finally:
        waiting.cancel()
        await asyncio.wait({waiting})


async def arrived(keeper: fsm.Keeper) -> bool:
    """Something has arrived that the host has not read."""
    return await until(lambda: keeper.health.waiting_bytes)


@pytest.mark.asyncio
async def test_an_idle_publication_lets_the_server_forget_what_others_write(
    source: Source,
) -> None:
    async with source.keeper(lease=LEASE) as keeper:
        await reach(keeper, "Streaming")
        async with waiting_host(keeper):
            for _ in range(3):
                position = be_busy(source)
                assert await confirmed_up_to(source, position)
        assert keeper.health.flushed >= position


@pytest.mark.asyncio
async def test_restart_lsn_follows_so_that_wal_can_be_removed(source: Source) -> None:
    async with source.keeper(lease=LEASE) as keeper:
        await reach(keeper, "Streaming")
        before = parse_lsn(source.slot_row()["restart"])
        async with waiting_host(keeper):
            for _ in range(3):
                position = be_busy(source)
                source.database.sql("CHECKPOINT")
                assert await confirmed_up_to(source, position)
        assert parse_lsn(source.slot_row()["restart"]) > before


@pytest.mark.asyncio
async def test_nothing_is_confirmed_beyond_a_transaction_that_is_not_acknowledged(
    source: Source,
) -> None:
    async with source.keeper(lease=LEASE) as keeper:
        await reach(keeper, "Streaming")
        source.insert(1, 1)
        transaction = await anext(keeper)
        assert await ids_of(transaction) == [1]
        position = be_busy(source)
        await asyncio.sleep(2 * LEASE)
        assert source.confirmed() <= transaction.commit_lsn
        await keeper.ack(transaction)
        async with waiting_host(keeper):
            assert await confirmed_up_to(source, position)
        assert errors_of(keeper) == []


@pytest.mark.asyncio
async def test_nothing_is_confirmed_beyond_a_transaction_that_waits_for_the_host(
    source: Source,
) -> None:
    """It has arrived, and the host has not asked for it yet."""
    async with source.keeper(lease=LEASE) as keeper:
        await reach(keeper, "Streaming")
        before = source.wal_position()
        source.insert(1, 1)
        be_busy(source)
        assert await arrived(keeper)
        await asyncio.sleep(2 * LEASE)
        assert source.confirmed() <= before
        assert await read(keeper, 1) == [1]


@pytest.mark.asyncio
async def test_nothing_is_confirmed_beyond_a_transaction_of_others_that_is_still_open(
    source: Source,
) -> None:
    """What was written before it, and will be committed after it, comes all the same."""
    async with source.keeper(lease=LEASE) as keeper:
        await reach(keeper, "Streaming")
        with psycopg.connect(source.dsn) as connection:
            connection.execute("INSERT INTO t VALUES (1, 'early')")
            position = be_busy(source)
            async with waiting_host(keeper):
                assert await confirmed_up_to(source, position)
            await keeper.stop()
            keeper.start()
            await reach(keeper, "Streaming")
        assert await read(keeper, 1) == [1]


@pytest.mark.asyncio
async def test_a_keeper_that_only_starts_and_stops_confirms_no_change(source: Source) -> None:
    source.create_slot()
    source.insert_each(1, 3)
    for _ in range(3):
        async with source.keeper() as keeper:
            await reach(keeper, "Streaming")
            assert await arrived(keeper)
    async with source.keeper() as keeper:
        assert await read(keeper, 3) == [1, 2, 3]


@pytest.mark.asyncio
async def test_empty_transactions_do_not_stand_in_the_way(source: Source) -> None:
    """Before 15 the server sends Begin and Commit of a transaction that has nothing for us."""
    async with source.keeper(lease=LEASE) as keeper:
        await reach(keeper, "Streaming")
        source.database.sql("CREATE TABLE u (id int)")
        for number in range(20):
            source.database.sql(f"INSERT INTO u VALUES ({number})")
        position = source.wal_position()
        async with waiting_host(keeper):
            assert await confirmed_up_to(source, position)
        source.insert(1, 1)
        assert await read(keeper, 1) == [1]


@pytest.mark.asyncio
async def test_an_idle_stream_outlives_its_lease(source: Source) -> None:
    async with source.keeper(lease=1) as keeper:
        await reach(keeper, "Streaming")
        pid = source.slot_row()["active_pid"]
        await asyncio.sleep(4)
        assert errors_of(keeper) == []
        assert source.slot_row()["active_pid"] == pid
