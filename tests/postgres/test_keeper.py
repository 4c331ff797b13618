"""A keeper and what befalls it: rivals, restarts, terminated sessions, cancelled and slow hosts."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import fsm
from fsm.postgres.lsn import parse_lsn
from tests.support.command import Command, environment
from tests.support.source import (
    Source,
    confirmed_up_to,
    errors_of,
    eventually,
    id_of,
    ids_of,
    items_of,
    reach,
    read,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fsm.embedded import Mode


@contextmanager
def recvlogical(source: Source, name: str = "rival") -> Iterator[int]:
    """pg_recvlogical streams the slot, without any lock of ours: its walsender's pid."""
    process = subprocess.Popen(
        [
            str(source.database.server.bin_dir / "pg_recvlogical"),
            *("--dbname", f"{source.dsn}?application_name={name}", "--slot", source.slot),
            *("--start", "--file", "-", "--status-interval", "1", "--no-loop"),
            *("--option", "proto_version=1"),
            *("--option", f"publication_names={source.publication}"),
        ],
        env=environment({"LD_LIBRARY_PATH": str(source.database.server.bin_dir.parent / "lib")}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        streaming = eventually(lambda: source.slot_row().get("active_pid"))
        assert streaming, process.stderr.read() if process.stderr and process.poll() else "silent"
        yield source.slot_row()["active_pid"]
    finally:
        process.terminate()
        process.communicate()


@asynccontextmanager
async def raw_session(source: Source) -> AsyncIterator[int]:
    """A bare walsender streams the slot, and never answers: its pid."""
    session = source.session(application_name="bare", lease=60)
    try:
        server = await session.open()
        await session.start(0)
        yield server.backend_pid
    finally:
        session.close()


def entries(keeper: fsm.Keeper, state: str) -> list[fsm.Record]:
    """Each time that the state was entered from another one."""
    return [r for r in keeper.journal if r.dest == state and r.state != state]


def terminate(source: Source) -> int:
    """Terminate whoever streams the slot."""
    pid = source.slot_row()["active_pid"]
    assert source.database.sql("SELECT pg_terminate_backend(%s)", [pid]) == [(True,)]
    return int(pid)


@asynccontextmanager
async def holder_and_waiter(source: Source) -> AsyncIterator[tuple[fsm.Keeper, fsm.Keeper]]:
    """One keeper streams, and another one waits for the lock."""
    async with source.keeper() as first:
        await reach(first, "Streaming")
        async with source.keeper() as second:
            assert await until(lambda: source.lock_pids(granted=False))
            yield first, second


# Takeover.


@pytest.mark.asyncio
async def test_a_standby_takes_over_when_the_keeper_stops_and_repeats_nothing(
    source: Source,
) -> None:
    async with holder_and_waiter(source) as (first, second):
        assert f"pid {source.slot_row()['active_pid']}" in second.why()
        source.insert_each(1, 20)
        assert await read(first, 10) == list(range(1, 11))
        await first.stop()
        assert await read(second, 10) == list(range(11, 21))
        assert errors_of(second) == []
        assert len(entries(second, "Locking")) == 1


@pytest.mark.asyncio
async def test_a_standby_takes_over_when_the_session_is_terminated(source: Source) -> None:
    async with holder_and_waiter(source) as (first, second):
        source.insert_each(1, 20)
        assert await read(first, 10) == list(range(1, 11))
        assert await until(lambda: source.confirmed() >= first.health.flushed)
        terminate(source)
        assert await read(second, 10) == list(range(11, 21))
        assert await until(lambda: first.health.holder)
        assert first.state == "Locking"
        [error] = errors_of(first)
        assert (error.error_class, error.facts["sqlstate"]) == (
            "server_starting_or_stopping",
            "57P01",
        )


@pytest.mark.asyncio
async def test_a_standby_takes_over_when_the_process_is_killed_and_loses_nothing(
    source: Source,
) -> None:
    source.create_slot()
    source.insert_each(1, 5000)
    arguments = ["--slot", source.slot, "--publication", source.publication]
    with Command("run", source.dsn, *arguments) as command:
        command.until(lambda one: len(one.out) > 500)
        async with source.keeper() as standby:
            assert await until(lambda: source.lock_pids(granted=False))
            killed = time.monotonic()
            command.send(signal.SIGKILL)
            await reach(standby, "Streaming")
            assert time.monotonic() - killed < 5
            command.exit_code()
            theirs = [change["new"]["id"] for change in command.changes]
            rest = await read(standby, 1)
            rest += await read(standby, 5000 - rest[0])
            assert errors_of(standby) == []
    assert theirs == list(range(1, theirs[-1] + 1))
    assert rest == list(range(rest[0], 5001))
    assert rest[0] <= theirs[-1] + 1


@pytest.mark.asyncio
async def test_whoever_lost_the_slot_may_not_acknowledge_what_the_other_has_done(
    source: Source,
) -> None:
    async with holder_and_waiter(source) as (first, second):
        source.insert_each(1, 2)
        transaction = await anext(first)
        assert await ids_of(transaction) == [1]
        terminate(source)
        assert await read(second, 2) == [1, 2]
        await second.stop()
        async with asyncio.timeout(20):
            with pytest.raises(fsm.LeaseLost):
                await first.ack(transaction)
        source.insert(3, 3)
        assert await read(first, 1) == [3]


@pytest.mark.asyncio
async def test_the_lock_passes_through_many_hands_and_each_row_is_seen_once(
    source: Source,
) -> None:
    seen: list[int] = []
    source.create_slot()
    source.insert_each(1, 200)

    async def work(count: int) -> None:
        async with source.keeper() as keeper:
            seen.extend(await read(keeper, count))

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(work(40))
    assert seen == list(range(1, 201))


# A rival: the lock is ours, the slot is not.


@pytest.mark.parametrize("kind", ["pg_recvlogical", "raw session"])
@pytest.mark.asyncio
async def test_a_rival_without_the_lock_is_named_and_waited_for(source: Source, kind: str) -> None:
    source.create_slot()
    async with rival_of(source, kind) as (pid, name), source.keeper() as keeper:
        assert await reach(keeper, "BackingOff", "Streaming") == "BackingOff"
        assert await until(lambda: len(errors_of(keeper)) >= 2)
        assert keeper.health.lock_held
        assert source.lock_pids(granted=True) != [pid]
        first, second, *_ = errors_of(keeper)
        assert (first.error_class, first.action) == ("contention", "wait")
        assert first.facts["sqlstate"] == "55006"
        assert f"pid {pid}, app '{name}', user 'postgres'" in first.detail
        assert "the lock is ours" in first.detail
        assert f"pid {pid}" in keeper.why() or keeper.state == "Acquiring"
        assert second.attempt == 2
        assert first.facts["backend_pid"] == second.facts["backend_pid"]
        assert len(entries(keeper, "Locking")) == 1
        assert keeper.journal.last is not None
        assert source.slot_row()["active_pid"] == pid


@pytest.mark.asyncio
async def test_the_slot_is_taken_when_the_rival_leaves_on_the_session_that_was_kept(
    source: Source,
) -> None:
    source.create_slot()
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        await keeper.stop()
        async with rival_of(source, "pg_recvlogical"):
            keeper.start()
            await reach(keeper, "BackingOff")
            [pid] = source.lock_pids(granted=True)
        source.insert(1, 1)
        assert await read(keeper, 1) == [1]
        assert source.slot_row()["active_pid"] == pid
        assert source.lock_pids(granted=True) == [pid]


@pytest.mark.asyncio
async def test_against_a_rival_attempts_stay_few(source: Source) -> None:
    source.create_slot()
    async with rival_of(source, "pg_recvlogical"), source.keeper() as keeper:
        await reach(keeper, "BackingOff")
        await asyncio.sleep(4)
        tries = len(entries(keeper, "Acquiring"))
        hot = [record for record in keeper.journal if record.error_class == "hot_loop"]
    assert 2 <= tries <= 12
    assert hot == []


@asynccontextmanager
async def rival_of(source: Source, kind: str) -> AsyncIterator[tuple[int, str]]:
    if kind == "pg_recvlogical":
        with recvlogical(source) as pid:
            yield pid, "rival"
    else:
        async with raw_session(source) as pid:
            yield pid, "bare"


@pytest.mark.asyncio
async def test_what_someone_else_confirmed_meanwhile_is_not_ours_any_more(source: Source) -> None:
    source.create_slot()
    async with source.keeper(lock_key=7) as keeper:
        source.insert_each(1, 2)
        assert await read(keeper, 1) == [1]
        transaction = await anext(keeper)
        assert await ids_of(transaction) == [2]
        with psycopg.connect(source.dsn, autocommit=True) as other:
            locking = asyncio.to_thread(other.execute, "SELECT pg_advisory_lock(7)")
            locked = asyncio.create_task(locking)
            assert await until(lambda: source.lock_pids(granted=False))
            terminate(source)
            await locked
            assert await until(lambda: transaction.lost and not source.slot_row()["active"])
            other.execute(
                "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [source.slot]
            )
        async with asyncio.timeout(20):
            with pytest.raises(fsm.LeaseLost):
                await keeper.ack(transaction)
        source.insert(3, 3)
        assert await read(keeper, 1) == [3]


# Restarts of the server.


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.asyncio
async def test_a_restart_in_mid_stream_costs_and_repeats_no_row(
    own_source: Source, mode: Mode
) -> None:
    """There is more to stream than all buffers on the way hold."""
    source, server = own_source, own_source.database.server
    source.database.sql("ALTER TABLE t ADD w text DEFAULT repeat('wide', 250)")
    source.create_slot()
    source.insert_each(1, 20_000, at_once=10)
    ids: list[int] = []
    restart: asyncio.Task[None] | None = None
    async with source.keeper(buffer_bytes=65_536) as keeper, asyncio.timeout(90):
        async for transaction in keeper:
            ids += await ids_of(transaction)
            await keeper.ack(transaction)
            await asyncio.sleep(0)
            if len(ids) == 5000:
                restart = asyncio.create_task(asyncio.to_thread(server.restart, mode))
            if len(ids) >= 20_000:
                break
        assert restart is not None
        await restart
        source.reconnect()
        source.insert(20_001, 20_001)
        ids += await read(keeper, 1)
        assert errors_of(keeper)
        assert {record.error_class for record in errors_of(keeper)} <= {
            "transient_network",
            "server_starting_or_stopping",
        }
    assert ids == list(range(1, 20_002))
    assert source.confirmed() >= keeper.health.flushed


@pytest.mark.asyncio
async def test_one_large_transaction_outlives_a_crash_of_the_server_in_the_hosts_hands(
    own_source: Source,
) -> None:
    source, server = own_source, own_source.database.server
    source.database.sql("ALTER TABLE t ADD w text DEFAULT repeat('wide', 250)")
    source.create_slot()
    source.insert(1, 20_000)
    ids: list[int] = []
    async with source.keeper(buffer_bytes=65_536) as keeper, asyncio.timeout(60):
        transaction = await anext(keeper)
        async for change in transaction:
            ids.append(id_of(change))
            if len(ids) == 5000:
                await asyncio.to_thread(server.restart, "immediate")
                source.reconnect()
        await keeper.ack(transaction)
        assert await until(lambda: source.confirmed() >= (transaction.end_lsn or 0))
    assert ids == list(range(1, 20_001))


@pytest.mark.asyncio
async def test_a_server_that_is_down_for_a_while_is_waited_for(own_source: Source) -> None:
    source, server = own_source, own_source.database.server
    async with source.keeper() as keeper:
        source_ready = await reach(keeper, "Streaming")
        assert source_ready == "Streaming"
        await asyncio.to_thread(server.stop, "immediate")
        await reach(keeper, "BackingOff")
        assert await until(lambda: len(errors_of(keeper)) >= 3)
        await asyncio.to_thread(server.start)
        source.reconnect()
        source.insert(1, 1)
        assert await read(keeper, 1) == [1]


# Terminated while the host works.


@pytest.mark.asyncio
async def test_a_transaction_in_the_hosts_hands_goes_on_after_a_reconnect(source: Source) -> None:
    """There is more of it than all buffers on the way hold."""
    source.create_slot()
    source.database.sql(
        "INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 30000) g"
    )
    async with source.keeper(buffer_bytes=65_536) as keeper, asyncio.timeout(60):
        transaction = await anext(keeper)
        ids = []
        async for change in transaction:
            ids.append(id_of(change))
            if len(ids) in (1, 10_000, 20_000):
                terminate(source)  # noticed when what had arrived before is read
        assert transaction.complete
        await keeper.ack(transaction)
        assert ids == list(range(1, 30_001))
        assert len(errors_of(keeper)) == 3


@pytest.mark.asyncio
async def test_an_acknowledgement_while_the_session_is_lost_waits_and_counts(
    source: Source,
) -> None:
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        source.insert_each(1, 2)
        transaction = await anext(keeper)
        assert await ids_of(transaction) == [1]
        terminate(source)
        assert await until(lambda: transaction.lost)
        async with asyncio.timeout(20):
            await keeper.ack(transaction)
        assert await read(keeper, 1) == [2]


@pytest.mark.asyncio
async def test_what_was_not_acknowledged_comes_again_and_what_was_does_not(
    source: Source,
) -> None:
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        source.insert_each(1, 3)
        assert await read(keeper, 1) == [1]
        for expected in (2, 3):
            transaction = await anext(keeper)
            assert await ids_of(transaction) == [expected]
    async with source.keeper() as keeper:
        assert await read(keeper, 2) == [2, 3]


@pytest.mark.asyncio
async def test_stop_confirms_what_was_acknowledged_even_while_more_arrives(
    source: Source,
) -> None:
    source.create_slot()
    source.insert_each(1, 3000)
    last = 0
    for _ in range(5):
        async with source.keeper(buffer_bytes=1024) as keeper:
            ids = await read(keeper, 100)
            assert ids[0] == last + 1
            last = ids[-1]
            await keeper.stop()
            assert keeper._operations.session is None
            flushed = keeper.health.flushed
            assert eventually(source.is_free)
            assert source.confirmed() == flushed


@pytest.mark.asyncio
async def test_a_cancelled_statement_of_the_walsender_is_survived(source: Source) -> None:
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        pid = source.slot_row()["active_pid"]
        source.database.sql("SELECT pg_cancel_backend(%s)", [pid])
        await reach(keeper, "BackingOff")
        source.insert(1, 1)
        assert await read(keeper, 1) == [1]


# A cancelled host.


@pytest.mark.asyncio
async def test_a_host_cancelled_at_any_moment_leaves_nothing_behind(source: Source) -> None:
    source.create_slot()
    source.insert_each(1, 5000, at_once=5)

    async def host() -> None:
        async with source.keeper(buffer_bytes=16_384) as keeper:
            async for transaction in keeper:
                async for _ in transaction:
                    await asyncio.sleep(0)
                await keeper.ack(transaction)

    before = asyncio.all_tasks()
    for moment in range(30):
        task = asyncio.create_task(host())
        await asyncio.sleep(0.003 * moment)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == before
        assert eventually(source.is_free, seconds=5)


@pytest.mark.asyncio
async def test_a_host_that_raises_leaves_nothing_behind_and_its_error_passes(
    source: Source,
) -> None:
    async def host() -> None:
        async with source.keeper() as keeper:
            await reach(keeper, "Streaming")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await host()
    assert eventually(source.is_free)


@pytest.mark.asyncio
async def test_a_waiter_that_is_cancelled_leaves_nothing_behind(source: Source) -> None:
    async with source.keeper() as holder:
        await reach(holder, "Streaming")
        for moment in range(10):
            waiter = asyncio.create_task(enter_and_wait(source))
            await asyncio.sleep(0.01 * moment)
            waiter.cancel()
            with suppress(asyncio.CancelledError):
                await waiter
        # The server looks once a second whether a client that waits is still there.
        assert await until(lambda: source.lock_pids(granted=False) == [])
        assert len(source.lock_pids(granted=True)) == 1


async def enter_and_wait(source: Source) -> None:
    async with source.keeper() as keeper:
        await keeper.wait_for("Streaming")


# A publication that goes.


@pytest.mark.asyncio
async def test_a_publication_dropped_in_mid_stream_fails_and_confirms_nothing_beyond(
    source: Source,
) -> None:
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        source.insert(1, 1)
        assert await read(keeper, 1) == [1]
        source.database.sql(f"DROP PUBLICATION {source.publication}")
        dropped_at = source.wal_position()
        source.insert(2, 2)
        failure = await failure_of(keeper)
        assert await until(source.is_free)
    assert failure.error_class == "configuration"
    assert f'CREATE PUBLICATION "{source.publication}"' in failure.remedy
    assert failure.sqlstate == ("55000" if source.database.server.version >= 18 else "42704")
    assert source.confirmed() <= dropped_at


@pytest.mark.asyncio
async def test_the_loss_of_one_of_two_publications_is_noticed(source: Source) -> None:
    second = source.database.unique("publication")
    source.database.sql("CREATE TABLE u (id bigint PRIMARY KEY)")
    source.database.sql(f"CREATE PUBLICATION {second} FOR TABLE u")
    async with source.keeper(publication=[source.publication, second]) as keeper:
        await reach(keeper, "Streaming")
        source.database.sql(f"DROP PUBLICATION {second}")
        dropped_at = source.wal_position()
        source.database.sql("INSERT INTO u VALUES (1)")
        source.insert(2, 2)
        failure = await failure_of(keeper)
    assert failure.error_class == "configuration"
    assert f'CREATE PUBLICATION "{second}"' in failure.remedy
    assert source.confirmed() <= dropped_at


@pytest.mark.asyncio
async def test_the_warning_of_18_reaches_a_role_that_wants_no_warnings(source: Source) -> None:
    role = plain_role(source)
    source.database.sql(f"ALTER ROLE {role} SET client_min_messages = 'error'")
    async with source.keeper(dsn=dsn_of(source, role)) as keeper:
        await reach(keeper, "Streaming")
        source.database.sql(f"DROP PUBLICATION {source.publication}")
        source.insert(2, 2)
        failure = await failure_of(keeper)
    assert failure.error_class == "configuration"


@pytest.mark.asyncio
async def test_what_the_remedy_for_a_dropped_publication_says_helps(source: Source) -> None:
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        source.database.sql(f"DROP PUBLICATION {source.publication}")
        source.insert(1, 1)
        failure = await failure_of(keeper)
        assert "create it anew" in failure.remedy
        source.database.sql(f"CREATE PUBLICATION {source.publication} FOR TABLE t")
        assert await until(source.is_free)
        source.database.sql("SELECT pg_drop_replication_slot(%s)", [source.slot])
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        source.insert(2, 2)
        assert await read(keeper, 1) == [2]


@pytest.mark.asyncio
async def test_a_slot_dropped_while_we_were_away_fails(source: Source) -> None:
    async with source.keeper(slot_policy="require") as keeper:
        failure = await failure_of(keeper)
    assert failure.facts["finding"] == "slot_missing"


async def failure_of(keeper: fsm.Keeper) -> fsm.SlotFailed:
    with pytest.raises(fsm.SlotFailed) as raised:
        await read(keeper, 1_000_000, seconds=30)
    return raised.value


def plain_role(source: Source) -> str:
    """A role that may do no more than replicate."""
    role = source.database.unique("role")
    source.database.sql(f"CREATE ROLE {role} LOGIN REPLICATION")
    return role


def dsn_of(source: Source, role: str) -> str:
    return source.database.server.dsn(source.database.name, user=role)


# A slow host.


@pytest.mark.asyncio
async def test_a_slow_host_with_a_full_buffer_keeps_its_session(source: Source) -> None:
    """It rests for more than three times the lease while the server has more to send."""
    source.create_slot()
    source.database.sql("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 40000) g")
    async with source.keeper(lease=1, buffer_bytes=65_536) as keeper:
        await reach(keeper, "Streaming")
        pid = source.slot_row()["active_pid"]
        transaction = await anext(keeper)
        ids = [id_of(await anext(transaction))]
        await asyncio.sleep(3.5)
        assert keeper.health.waiting_bytes < 1_000_000
        ids += await ids_of(transaction)
        await keeper.ack(transaction)
        assert source.slot_row()["active_pid"] == pid
        assert errors_of(keeper) == []
    assert ids == list(range(1, 40_001))


@pytest.mark.asyncio
async def test_a_slow_host_with_nothing_more_to_come_keeps_its_session(source: Source) -> None:
    async with source.keeper(lease=1) as keeper:
        await reach(keeper, "Streaming")
        source.insert(1, 1)
        transaction = await anext(keeper)
        await asyncio.sleep(3.5)
        assert await ids_of(transaction) == [1]
        await keeper.ack(transaction)
        assert errors_of(keeper) == []


@pytest.mark.asyncio
async def test_acknowledgements_are_confirmed_soon_and_in_order(source: Source) -> None:
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        for number in range(1, 6):
            source.insert(number, number)
            transaction = await anext(keeper)
            assert await ids_of(transaction) == [number]
            before = source.confirmed()
            assert before < transaction.commit_lsn
            await keeper.ack(transaction)
            end = transaction.end_lsn or 0
            assert await confirmed_up_to(source, end, seconds=5)


@pytest.mark.asyncio
async def test_an_acknowledgement_out_of_order_confirms_nothing_over_a_gap(
    source: Source,
) -> None:
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        source.insert_each(1, 2)
        first, second = await whole(keeper), await whole(keeper)
        await keeper.ack(second)
        await asyncio.sleep(0.3)
        assert source.confirmed() < first.commit_lsn
        await keeper.ack(first)
        end = second.end_lsn or 0
        assert await until(lambda: source.confirmed() >= end)


async def whole(keeper: fsm.Keeper) -> fsm.Transaction:
    transaction = await anext(keeper)
    async for _ in transaction:
        pass
    return transaction


@pytest.mark.asyncio
async def test_acknowledging_what_was_not_read_is_refused(source: Source) -> None:
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        source.insert(1, 3)
        transaction = await anext(keeper)
        await anext(transaction)
        with pytest.raises(fsm.AckRefused):
            await keeper.ack(transaction)
        assert source.confirmed() < transaction.commit_lsn
        async for _ in transaction:
            pass
        await keeper.ack(transaction)


# Its life.


@pytest.mark.asyncio
async def test_a_stopped_keeper_starts_again_and_goes_on(source: Source) -> None:
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        source.insert(1, 1)
        assert await read(keeper, 1) == [1]
        await keeper.stop()
        assert keeper.state == "Idle"
        assert eventually(source.is_free)
        assert [transaction async for transaction in keeper] == []
        source.insert(2, 2)
        keeper.start()
        assert await read(keeper, 1) == [2]


@pytest.mark.asyncio
async def test_stop_during_any_wait_ends_at_once(source: Source) -> None:
    async with holder_and_waiter(source) as (_, waiter):
        began = time.monotonic()
        await waiter.stop()
        assert time.monotonic() - began < 2
        assert waiter.state == "Idle"


@pytest.mark.asyncio
async def test_why_tells_what_goes_on(source: Source) -> None:
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        assert keeper.why().startswith("Streaming for ")
        assert f"'{source.slot}'" in keeper.why()
        health = keeper.health
        assert (health.state, health.session_open, health.lock_held) == ("Streaming", True, True)
        await keeper.stop()
        assert keeper.why() == "Idle: nothing is open; start() begins."


@pytest.mark.asyncio
async def test_a_slot_that_is_created_blocks_on_old_transactions_only_for_a_while(
    source: Source,
) -> None:
    """While an old transaction is open, the slot cannot be made; a stop is heeded all the same."""
    with psycopg.connect(source.dsn) as connection:
        connection.execute("INSERT INTO t VALUES (1, 'open')")
        async with source.keeper() as keeper:
            await reach(keeper, "Acquiring")
            assert await until(lambda: source.slot_row().get("active_pid"))
            began = time.monotonic()
            await keeper.stop()
            assert time.monotonic() - began < 2
        connection.rollback()
    assert await until(source.is_free)
    async with source.keeper() as keeper:
        assert await reach(keeper, "Streaming", "Failed") == "Streaming"


@pytest.mark.asyncio
async def test_a_slot_is_created_as_soon_as_the_old_transaction_ends(source: Source) -> None:
    with psycopg.connect(source.dsn) as connection:
        connection.execute("INSERT INTO t VALUES (1, 'open')")
        async with source.keeper() as keeper:
            await reach(keeper, "Acquiring")
            assert await until(lambda: source.slot_row().get("active_pid"))
            connection.rollback()
            assert await reach(keeper, "Streaming", "BackingOff") == "Streaming"
            source.insert(2, 2)
            assert await read(keeper, 1) == [2]


@pytest.mark.asyncio
async def test_two_keepers_of_different_slots_do_not_disturb_each_other(source: Source) -> None:
    other = source.database.unique("slot")
    async with source.keeper() as one, source.keeper(slot=other) as two:
        await reach(one, "Streaming")
        await reach(two, "Streaming")
        source.insert_each(1, 3)
        assert await read(one, 3) == [1, 2, 3]
        assert await read(two, 3) == [1, 2, 3]


@pytest.mark.asyncio
async def test_positions_grow_from_transaction_to_transaction(source: Source) -> None:
    async with source.keeper() as keeper:
        await reach(keeper, "Streaming")
        source.insert_each(1, 5)
        positions: list[Any] = []
        while len(positions) < 5:
            transaction = await whole(keeper)
            positions.append((transaction.commit_lsn, transaction.end_lsn, transaction.xid))
            await keeper.ack(transaction)
        [(now,)] = source.database.sql("SELECT pg_current_wal_lsn()::text")
    assert positions == sorted(positions)
    assert len(set(positions)) == 5
    assert all(commit < (end or 0) <= parse_lsn(now) for commit, end, _ in positions)


@pytest.mark.asyncio
async def test_batches_give_what_iteration_gives(source: Source) -> None:
    source.create_slot()
    source.insert(1, 2500)
    async with source.keeper() as keeper:
        transaction = await anext(keeper)
        batches = [batch async for batch in transaction.batches(1000)]
        await keeper.ack(transaction)
    assert all(0 < len(batch) <= 1000 for batch in batches)
    assert [id_of(change) for batch in batches for change in batch] == list(range(1, 2501))


@pytest.mark.asyncio
async def test_an_unread_rest_is_passed_over_and_comes_again_to_the_next_keeper(
    source: Source,
) -> None:
    source.create_slot()
    source.insert(1, 1000)
    source.insert(1001, 1001)
    async with source.keeper() as keeper:
        first = await anext(keeper)
        assert id_of(await anext(first)) == 1
        assert [id_of(item) for item in await items_of(keeper, 1)] == [1001]
    async with source.keeper() as keeper:
        assert await read(keeper, 1001) == list(range(1, 1002))
