"""The server breaks, or breaks us."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from fsm import Keeper, SlotFailed
from fsm.embedded import Postgres
from tests.support.servers import Database, Servers, run_sql
from tests.support.source import ids_of

PATIENCE = 30.0


def prepared(server: Postgres) -> str:
    run_sql(server, "CREATE TABLE t (id bigint PRIMARY KEY, payload text)")
    run_sql(server, "CREATE PUBLICATION p FOR TABLE t")
    run_sql(server, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    return server.dsn()


@pytest.mark.asyncio
async def test_a_slot_whose_wal_was_taken_away_is_data_loss_and_never_streamed_over(
    servers: Servers, installed: int
) -> None:
    with servers.make(installed, {"max_slot_wal_keep_size": "1MB"}) as server:
        dsn = prepared(server)
        for _ in range(4):
            run_sql(
                server, "INSERT INTO t SELECT g, repeat('x', 900) FROM generate_series(1, 20000) g"
            )
            run_sql(server, "TRUNCATE t")
            run_sql(server, "SELECT pg_switch_wal()")
            run_sql(server, "CHECKPOINT")
        async with Keeper(dsn, slot="s", publication="p") as keeper, asyncio.timeout(PATIENCE):
            with pytest.raises(SlotFailed) as failed:
                await anext(aiter(keeper))
    assert failed.value.error_class == "data_loss"
    assert failed.value.remedy


@pytest.mark.asyncio
async def test_a_killed_walsender_which_restarts_the_server_is_outlived(
    own_server: Postgres,
) -> None:
    dsn = prepared(own_server)
    async with Keeper(dsn, slot="s", publication="p") as keeper, asyncio.timeout(PATIENCE):
        await keeper.wait_for("Streaming")
        [(pid,)] = run_sql(own_server, "SELECT active_pid FROM pg_replication_slots")
        os.kill(pid, signal.SIGKILL)
        await keeper.wait_for("BackingOff")
        await keeper.wait_for("Streaming")
        run_sql(own_server, "INSERT INTO t VALUES (1, 'x')")
        transaction = await anext(aiter(keeper))
        assert await ids_of(transaction) == [1]
        await keeper.ack(transaction)


@pytest.mark.asyncio
async def test_a_server_that_was_down_for_a_while_is_come_back_to(own_server: Postgres) -> None:
    dsn = prepared(own_server)
    async with Keeper(dsn, slot="s", publication="p") as keeper, asyncio.timeout(PATIENCE):
        await keeper.wait_for("Streaming")
        own_server.kill()
        await keeper.wait_for("BackingOff")
        await asyncio.sleep(1.0)
        assert keeper.health.error_class == "transient_network"
        await asyncio.to_thread(own_server.start)
        keeper.retry_now()
        await keeper.wait_for("Streaming")


@pytest.mark.asyncio
async def test_a_cancelled_walsender_is_only_a_pause(database: Database) -> None:
    database.sql("CREATE TABLE t (id bigint PRIMARY KEY)")
    database.sql("CREATE PUBLICATION p FOR TABLE t")
    slot = database.unique("s")
    async with (
        Keeper(database.dsn, slot=slot, publication="p", slot_policy="create") as keeper,
        asyncio.timeout(PATIENCE),
    ):
        await keeper.wait_for("Streaming")
        database.sql(
            "SELECT pg_cancel_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s",
            [slot],
        )
        await keeper.wait_for("BackingOff")
        await keeper.wait_for("Streaming")
        assert keeper.health.error_class == "server_starting_or_stopping"


@pytest.mark.asyncio
async def test_a_frozen_walsender_of_a_rival_is_waited_out(database: Database) -> None:
    database.sql("CREATE TABLE t (id bigint PRIMARY KEY)")
    database.sql("CREATE PUBLICATION p FOR TABLE t")
    slot = database.unique("s")
    database.allow_leftovers()
    async with (
        Keeper(database.dsn, slot=slot, publication="p", slot_policy="create", lease=2.0) as holder,
        asyncio.timeout(PATIENCE),
    ):
        await holder.wait_for("Streaming")
        [(pid,)] = database.sql(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", [slot]
        )
        os.kill(pid, signal.SIGSTOP)
        try:
            await holder.wait_for("BackingOff")
            assert holder.health.error_class == "transient_network"
        finally:
            os.kill(pid, signal.SIGCONT)
        await holder.wait_for("Streaming")
