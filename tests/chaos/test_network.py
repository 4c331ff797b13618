"""The network breaks; the host sees every row once, in order."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from psycopg.conninfo import make_conninfo

from fsm import Keeper
from fsm.embedded import Postgres
from tests.support.proxy import FaultProxy
from tests.support.servers import Database, run_sql
from tests.support.source import id_of, ids_of

LEASE = 2.0
PATIENCE = 30.0


@pytest.fixture
def slot(database: Database) -> str:
    database.sql("CREATE TABLE t (id bigint PRIMARY KEY, payload text)")
    database.sql("CREATE PUBLICATION p FOR TABLE t")
    name = database.unique("s")
    database.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
    database.allow_leftovers()
    return name


@asynccontextmanager
async def behind_proxy(database: Database, slot: str) -> AsyncIterator[tuple[FaultProxy, Keeper]]:
    server = database.server
    async with FaultProxy(server.host, server.port) as proxy:
        dsn = make_conninfo(database.dsn, host="127.0.0.1", port=proxy.port)
        async with Keeper(dsn, slot=slot, publication="p", lease=LEASE, attempt_rate=5) as keeper:
            yield proxy, keeper


async def insert(database: Database, first: int, last: int, per: int = 100) -> None:
    for start in range(first, last + 1, per):
        await asyncio.to_thread(
            run_sql,
            database.server,
            "INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(%s::bigint, %s) g",
            (start, min(start + per - 1, last)),
            database.name,
        )


async def collect(keeper: Keeper, count: int, seen: list[int]) -> None:
    async for transaction in keeper:
        seen.extend(await ids_of(transaction))
        await keeper.ack(transaction)
        if len(seen) >= count:
            return


FAULTS: dict[str, Callable[[FaultProxy], None]] = {
    "reset": FaultProxy.reset,
    "fin": FaultProxy.close,
    "cut_within_a_message": lambda proxy: proxy.cut_after(1_037),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", FAULTS)
async def test_rows_arrive_once_each_whatever_breaks_the_connection(
    database: Database, slot: str, fault: str
) -> None:
    seen: list[int] = []
    async with behind_proxy(database, slot) as (proxy, keeper), asyncio.timeout(PATIENCE):
        await keeper.wait_for("Streaming")
        async with asyncio.TaskGroup() as group:
            group.create_task(collect(keeper, 3000, seen))
            for round_ in range(3):
                await insert(database, 1 + 1000 * round_, 1000 * (round_ + 1))
                FAULTS[fault](proxy)
                await asyncio.sleep(0.05)
        assert proxy.accepted > 1
    assert seen == list(range(1, 3001))


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_rows_arrive_once_each_under_any_mixture_of_faults(
    database: Database, slot: str, seed: int
) -> None:
    drawn = random.Random(seed)
    seen: list[int] = []
    async with (
        behind_proxy(database, slot) as (proxy, keeper),
        asyncio.timeout(2 * PATIENCE),
        asyncio.TaskGroup() as group,
    ):
        group.create_task(collect(keeper, 5000, seen))
        writing = group.create_task(insert(database, 1, 5000))
        for _ in range(5):
            await asyncio.sleep(drawn.uniform(0.05, 0.4))
            drawn.choice(list(FAULTS.values()))(proxy)
        await writing
        proxy.pass_through()
    assert seen == list(range(1, 5001))


@pytest.mark.asyncio
async def test_a_black_hole_is_noticed_within_the_lease_and_left_when_it_ends(
    database: Database, slot: str
) -> None:
    seen: list[int] = []
    async with behind_proxy(database, slot) as (proxy, keeper), asyncio.timeout(PATIENCE):
        await keeper.wait_for("Streaming")
        proxy.black_hole()
        began = time.monotonic()
        await keeper.wait_for("BackingOff")
        noticed = time.monotonic() - began
        proxy.pass_through()
        await insert(database, 1, 100)
        await collect(keeper, 100, seen)
    assert noticed < 2 * LEASE + 1
    assert seen == list(range(1, 101))


@pytest.mark.asyncio
async def test_a_holder_in_a_black_hole_makes_way_within_the_lease(
    database: Database, slot: str
) -> None:
    async with behind_proxy(database, slot) as (proxy, holder), asyncio.timeout(PATIENCE):
        await holder.wait_for("Streaming")
        async with Keeper(database.dsn, slot=slot, publication="p", lease=LEASE) as waiting:
            await waiting.wait_for("Locking")
            await asyncio.sleep(0.3)
            proxy.black_hole()
            began = time.monotonic()
            await waiting.wait_for("Streaming")
            assert time.monotonic() - began < LEASE + 5
            assert holder.state != "Streaming" or time.monotonic() - began < 2 * LEASE
            proxy.pass_through()


@pytest.mark.asyncio
async def test_a_server_that_accepts_and_says_nothing_is_given_up_after_the_timeout(
    database: Database, slot: str
) -> None:
    server = database.server
    async with FaultProxy(server.host, server.port) as proxy, asyncio.timeout(PATIENCE):
        proxy.black_hole()
        dsn = make_conninfo(database.dsn, host="127.0.0.1", port=proxy.port)
        async with Keeper(dsn, slot=slot, publication="p", connect_timeout=0.5) as keeper:
            await keeper.wait_for("BackingOff")
            assert "0.5" in keeper.why() or "connect" in keeper.why()
            assert keeper.health.error_class == "transient_network"
            proxy.pass_through()
            await keeper.wait_for("Streaming")


@pytest.mark.asyncio
async def test_a_server_that_is_frozen_while_we_connect_is_given_up_after_the_timeout(
    own_server: Postgres,
) -> None:
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        async with (
            asyncio.timeout(PATIENCE),
            Keeper(own_server.dsn(), slot="s", publication="p", connect_timeout=0.5) as keeper,
        ):
            await keeper.wait_for("BackingOff")
            assert keeper.health.error_class == "transient_network"
    finally:
        os.kill(own_server.pid, signal.SIGCONT)


@pytest.mark.asyncio
async def test_a_host_that_is_slow_is_neither_timed_out_nor_given_everything_at_once(
    database: Database, slot: str
) -> None:
    limit = 64 * 1024
    seen: list[int] = []
    sessions = 0

    async with (
        Keeper(database.dsn, slot=slot, publication="p", lease=1.0, buffer_bytes=limit) as keeper,
        asyncio.timeout(PATIENCE),
    ):
        await keeper.wait_for("Streaming")
        await insert(database, 1, 4000, per=1000)
        worst = 0
        async for transaction in keeper:
            async for change in transaction:
                seen.append(id_of(change))
                worst = max(worst, keeper.health.waiting_bytes)
                if len(seen) % 1000 == 500:
                    await asyncio.sleep(1.5)
            await keeper.ack(transaction)
            if len(seen) >= 4000:
                break
        sessions = sum(record.trigger == "stream_started" for record in keeper.journal)
    assert seen == list(range(1, 4001))
    assert sessions <= 1
    assert worst < limit + 500 * 400
