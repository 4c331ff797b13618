"""A lock that is released at the very end of a waiter's slice: 55P03, and granted all the same."""

from __future__ import annotations

import asyncio
import random

import psycopg
import pytest

from fsm.postgres.lock import lock_key
from fsm.postgres.session import PostgresSession, SessionSettings
from fsm.runtime.clock import RealClock
from tests.support.servers import Database

ROUNDS = 500
SLICE = 0.03


async def _round(settings: SessionSettings, database: Database, offset: float) -> tuple[bool, bool]:
    """Release at the end of a slice; tell whether the race was met, and what a second ask gave."""
    key = settings.lock_key
    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as holder:
        await holder.execute("SELECT pg_advisory_lock(%s)", (key,))
        session = PostgresSession(settings, RealClock())
        try:
            server = await session.open()
            wait = asyncio.create_task(session.lock(SLICE))
            await asyncio.sleep(SLICE + offset)
            await holder.execute("SELECT pg_advisory_unlock(%s)", (key,))
            granted = await wait
            rows = await (
                await holder.execute(
                    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = %s",
                    (server.backend_pid,),
                )
            ).fetchall()
            raced = bool(rows) and not granted
            again = granted or await session.lock(1.0)
        finally:
            session.close()
    return raced, again


async def _is_free(database: Database, key: int) -> bool:
    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as other:
        await other.execute("SET lock_timeout = '2s'")
        try:
            await other.execute("SELECT pg_advisory_lock(%s)", (key,))
        except psycopg.errors.LockNotAvailable:
            return False
    return True


@pytest.mark.asyncio
async def test_no_lock_is_stranded_when_it_is_released_at_the_end_of_a_slice(
    kept: Database,
) -> None:
    settings = SessionSettings.of(
        kept.dsn,
        slot="s",
        publication="p",
        lease=10.0,
        logical_messages=False,
        lock_key=None,
        lock_namespace="slotkeeper",
        application_name=None,
    )
    assert settings.lock_key == lock_key("s")
    drawn = random.Random(1)
    raced = 0
    for _ in range(ROUNDS):
        # The server's timer starts a little after ours; offsets around that meet the race.
        met, again = await _round(settings, kept, drawn.uniform(-0.0005, 0.0025))
        raced += met
        assert again
        assert await _is_free(kept, settings.lock_key)
    print(f"\nrelease at the end of a slice: {ROUNDS} rounds, {raced} met the race, none stranded")  # noqa: T201
    assert raced
