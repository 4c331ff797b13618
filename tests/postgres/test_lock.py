"""The advisory lock: on the slot's own session, waited for in slices, and never stranded."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fsm.postgres.lock import halves, lock_key
from tests.support.servers import Database
from tests.support.source import Source, errors_of, eventually, reach, read, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import fsm
    from fsm.embedded import Postgres
    from fsm.postgres.session import PostgresSession


@asynccontextmanager
async def opened(source: Source, **options: Any) -> AsyncIterator[PostgresSession]:
    session = source.session(**options)
    try:
        await session.open()
        yield session
    finally:
        session.close()


def times(keeper: fsm.Keeper, trigger: str) -> int:
    return sum(record.trigger == trigger for record in keeper.journal)


@pytest.mark.asyncio
async def test_lock_and_slot_are_held_by_one_backend_with_the_documented_key(
    source: Source,
) -> None:
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        high, low = halves(lock_key(source.slot))
        found = source.database.sql(
            "SELECT l.pid, s.active_pid, l.mode, l.granted FROM pg_locks l, pg_replication_slots s"
            " WHERE l.locktype = 'advisory' AND l.classid = %s AND l.objid = %s AND l.objsubid = 1"
            " AND s.slot_name = %s",
            [high, low, source.slot],
        )
        assert len(found) == 1
        [(lock_pid, active_pid, mode, granted)] = found
        assert lock_pid == active_pid
        assert (mode, granted) == ("ExclusiveLock", True)


@pytest.mark.parametrize("key", [0, -1, 2**63 - 1, -(2**63), 4_294_967_296])
@pytest.mark.asyncio
async def test_a_key_of_the_hosts_choice_is_the_one_that_is_locked(
    source: Source, key: int
) -> None:
    async with opened(source, lock_key=key) as session:
        assert await session.lock(1)
        with psycopg.connect(source.dsn, autocommit=True) as other:
            row = other.execute("SELECT pg_try_advisory_lock(%s::bigint)", [key]).fetchone()
        assert row == (False,)
        async with opened(source, lock_key=key) as waiter:
            assert not await waiter.lock(0.05)
            assert waiter.lock_holder is not None
            assert waiter.lock_holder.pid in source.lock_pids(granted=True)


@pytest.mark.asyncio
async def test_the_lock_is_free_once_its_session_is_closed_however_often_it_was_taken(
    source: Source,
) -> None:
    async with opened(source) as session:
        for _ in range(3):
            assert await session.lock(1)
    async with opened(source) as other:
        assert await other.lock(5)


@pytest.mark.asyncio
async def test_a_slice_ends_without_the_lock_and_the_session_asks_again(source: Source) -> None:
    async with opened(source) as holder, opened(source) as waiter:
        assert await holder.lock(1)
        began = time.monotonic()
        assert not await waiter.lock(0.2)
        assert time.monotonic() - began >= 0.19
        assert not await waiter.lock(0.2)
        holder.close()
        assert await waiter.lock(5)


@pytest.mark.asyncio
async def test_a_keeper_asks_again_after_each_slice_on_the_same_session(source: Source) -> None:
    async with source.keeper() as holder:
        await reach(holder, "Streaming")
        async with source.keeper(
            lock_slice=0.4, attempt_rate=10, timers={"waiting_notice": 0.2}
        ) as waiter:
            assert await until(lambda: source.lock_pids(granted=False))
            [pid] = source.lock_pids(granted=False)
            assert await until(lambda: times(waiter, "slice_ended") >= 4)
            assert waiter.state == "Locking"
            assert times(waiter, "waiting_noticed") >= 2
            assert errors_of(waiter) == []
            await holder.stop()
            await reach(waiter, "Streaming")
            assert source.slot_row()["active_pid"] == pid
            source.insert(1, 1)
            assert await read(waiter, 1) == [1]


@pytest.mark.asyncio
async def test_a_waiter_does_not_pin_the_vacuum_horizon_for_longer_than_a_slice(
    source: Source,
) -> None:
    async with source.keeper() as holder:
        await reach(holder, "Streaming")
        async with source.keeper(lock_slice=0.4, attempt_rate=10) as waiter:
            assert await until(lambda: source.lock_pids(granted=False))
            seen: list[int] = []
            for number in range(200):
                source.insert(number, number)
                if (horizon := xmin_of_waiter(source)) and horizon not in seen:
                    seen.append(horizon)
                if len(seen) >= 4:
                    break
                await asyncio.sleep(0.05)
            assert waiter.state == "Locking"
    assert len(seen) >= 4
    assert seen == sorted(seen)


def xmin_of_waiter(source: Source) -> int | None:
    found = source.database.sql(
        "SELECT a.backend_xmin::text::bigint FROM pg_stat_activity a JOIN pg_locks l USING (pid)"
        " WHERE l.locktype = 'advisory' AND NOT l.granted AND a.datname = current_database()"
    )
    return found[0][0] if found else None


@pytest.mark.asyncio
async def test_a_holder_that_leaves_as_a_slice_ends_strands_no_lock(source: Source) -> None:
    """A grant may cross the timeout; whatever came of it, the waiter's close frees the lock."""
    outcomes = set()
    for number in range(30):
        async with opened(source) as holder, opened(source) as waiter:
            assert await holder.lock(1)
            waiting = asyncio.create_task(waiter.lock(0.05))
            await asyncio.sleep(0.04 + 0.0007 * number)
            holder.close()
            outcomes.add(await waiting)
            assert await waiter.lock(5)
        assert eventually(lambda: source.lock_pids(granted=True) == [], seconds=5)
    assert outcomes == {True, False}


@pytest.mark.asyncio
async def test_a_takeover_takes_milliseconds_and_not_a_slice(source: Source) -> None:
    async with source.keeper() as first:
        await reach(first, "Streaming")
        async with source.keeper(lock_slice=30) as second:
            assert await until(lambda: source.lock_pids(granted=False))
            pid = source.slot_row()["active_pid"]
            began = time.monotonic()
            source.database.sql("SELECT pg_terminate_backend(%s)", [pid])
            await reach(second, "Streaming")
            assert time.monotonic() - began < 3


@pytest.mark.asyncio
async def test_keepers_in_two_databases_both_have_a_lock_and_one_has_the_slot(
    server: Postgres, source: Source
) -> None:
    """Advisory locks belong to a database, slots to the whole server."""
    with Database(server) as elsewhere:
        elsewhere.sql(f"CREATE PUBLICATION {source.publication}")
        async with source.keeper() as keeper:
            await reach(keeper, "Streaming")
            async with source.keeper(dsn=elsewhere.dsn) as other:
                assert await reach(other, "Failed", "Streaming") == "Failed"
                [error] = errors_of(other)
                assert error.facts["finding"] == "slot_of_other_database"
            source.insert(1, 1)
            assert await read(keeper, 1) == [1]
            assert errors_of(keeper) == []


@pytest.mark.asyncio
async def test_a_terminated_waiter_comes_back(source: Source) -> None:
    async with source.keeper() as holder:
        await reach(holder, "Streaming")
        async with source.keeper() as waiter:
            assert await until(lambda: source.lock_pids(granted=False))
            [pid] = source.lock_pids(granted=False)
            source.database.sql("SELECT pg_terminate_backend(%s)", [pid])
            assert await until(lambda: source.lock_pids(granted=False) not in ([], [pid]))
            assert [record.error_class for record in errors_of(waiter)] == [
                "server_starting_or_stopping"
            ]


@pytest.mark.asyncio
async def test_a_waiter_whose_statement_is_cancelled_backs_off_and_waits_again(
    source: Source,
) -> None:
    async with source.keeper() as holder:
        await reach(holder, "Streaming")
        async with source.keeper() as waiter:
            assert await until(lambda: source.lock_pids(granted=False))
            [pid] = source.lock_pids(granted=False)
            source.database.sql("SELECT pg_cancel_backend(%s)", [pid])
            await reach(waiter, "BackingOff")
            assert errors_of(waiter)[0].error_class == "contention"
            waiter.retry_now()
            assert await until(lambda: source.lock_pids(granted=False))


@pytest.mark.asyncio
async def test_waiters_take_their_turns(source: Source) -> None:
    """Each of several waiters gets the slot once those before it have left."""
    source.create_slot()
    order: list[int] = []

    async def wait_and_leave(number: int) -> None:
        async with source.keeper(lock_slice=2) as keeper:
            await keeper.wait_for("Streaming")
            order.append(number)

    async with source.keeper() as holder:
        await reach(holder, "Streaming")
        tasks = [asyncio.create_task(wait_and_leave(number)) for number in range(4)]
        assert await until(lambda: len(source.lock_pids(granted=False)) == 4)
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks)
    assert sorted(order) == [0, 1, 2, 3]
    assert eventually(source.is_free)


@pytest.mark.asyncio
async def test_a_lock_held_by_a_plain_session_is_waited_for_and_its_holder_is_named(
    source: Source,
) -> None:
    with psycopg.connect(source.dsn, autocommit=True, application_name="psql of Bob") as other:
        other.execute("SELECT pg_advisory_lock(%s)", [lock_key(source.slot)])
        async with source.keeper() as keeper:
            assert await until(lambda: keeper.health.holder)
            assert f"pid {other.info.backend_pid}, app 'psql of Bob'" in keeper.why()
            other.close()
            await reach(keeper, "Streaming")


@pytest.mark.asyncio
async def test_a_waiter_that_is_closed_in_mid_wait_never_gets_the_lock(source: Source) -> None:
    async with opened(source) as holder:
        assert await holder.lock(1)
        for _ in range(5):
            async with opened(source) as waiter:
                waiting = asyncio.create_task(waiter.lock(30))
                assert await until(lambda: source.lock_pids(granted=False))
                waiting.cancel()
                with suppress(asyncio.CancelledError):
                    await waiting
        holder.close()
        async with opened(source) as last:
            assert await last.lock(10)
