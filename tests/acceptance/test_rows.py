"""100,000 rows across a restart of the server; an idle publication on a busy server."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from fsm import Keeper, parse_lsn
from fsm.embedded import Mode, Postgres
from fsm.postgres.changes import Insert
from tests.support.servers import Database, run_sql

ROWS = 100_000
PER_TRANSACTION = 500
START = datetime(2026, 1, 1, tzinfo=UTC)


def _expected(number: int) -> tuple[int, str, Decimal, datetime]:
    return number, f"row {number}", Decimal(number) / 8, START + timedelta(seconds=number)


async def _write(database: Database, server: Postgres, mode: Mode) -> None:
    for first in range(1, ROWS, PER_TRANSACTION):
        if first == ROWS // 2 + 1:
            await asyncio.to_thread(server.restart, mode)
        await asyncio.to_thread(
            run_sql,
            server,
            "INSERT INTO r SELECT g, 'row ' || g, g / 8.0, %s::timestamptz + g * interval '1 s' "
            "FROM generate_series(%s::bigint, %s) g",
            (START, first, first + PER_TRANSACTION - 1),
            database.name,
        )


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_rows_arrive_once_each_in_order_across_a_restart(
    own_server: Postgres, kept: Database, mode: Mode
) -> None:
    kept.sql("CREATE TABLE r (id bigint PRIMARY KEY, x text, n numeric, at timestamptz)")
    kept.sql("ALTER PUBLICATION p ADD TABLE r")
    seen: list[tuple[int, str, Decimal, datetime]] = []
    acknowledged = 0
    sessions = []
    async with (
        Keeper(kept.dsn, slot="s", publication="p") as keeper,
        asyncio.timeout(120),
        asyncio.TaskGroup() as group,
    ):
        keeper.journal.listen(lambda r: sessions.append(r) if r.dest == "Streaming" else None)
        group.create_task(_write(kept, own_server, mode))
        began = time.monotonic()
        async for transaction in keeper:
            async for change in transaction:
                assert isinstance(change, Insert)
                row = change.new
                seen.append((row["id"], row["x"], row["n"], row["at"]))
            await keeper.ack(transaction)
            acknowledged = len(seen)
            if acknowledged >= ROWS:
                break
        took = time.monotonic() - began
    print(f"\n{mode} restart: {len(seen)} rows in {took:.1f} s, {len(sessions)} streams")  # noqa: T201
    assert seen == [_expected(number) for number in range(1, ROWS + 1)]
    assert len([record for record in sessions if record.trigger == "stream_started"]) >= 2


@pytest.mark.asyncio
async def test_an_idle_publication_on_a_busy_server_retains_no_wal(kept: Database) -> None:
    kept.sql("CREATE TABLE busy (v text)")
    async with Keeper(kept.dsn, slot="s", publication="p") as keeper:
        await keeper.wait_for("Streaming")
        host = asyncio.create_task(keeper.__anext__())
        behind = []
        for _ in range(10):
            await asyncio.to_thread(
                kept.sql, "INSERT INTO busy SELECT repeat('x', 1000) FROM generate_series(1, 5000)"
            )
            await asyncio.sleep(2)
            position, confirmed = kept.sql(
                "SELECT pg_current_wal_lsn()::text, confirmed_flush_lsn::text "
                "FROM pg_replication_slots WHERE slot_name = 's'"
            )[0]
            behind.append(parse_lsn(position) - parse_lsn(confirmed))
        host.cancel()
    print(f"\nidle publication, 50 MB written: behind by at most {max(behind)} bytes")  # noqa: T201
    assert max(behind) < 1_000_000
