"""Looking at slots and publications, creating and starting them, on real servers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fsm.errors import SessionError
from fsm.operations import finding_about
from fsm.postgres.lsn import parse_lsn
from tests.support.servers import Database, run_sql
from tests.support.source import Source, eventually, reach, read, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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


@pytest.mark.asyncio
async def test_a_slot_that_is_missing_is_none(source: Source) -> None:
    async with opened(source) as session:
        assert await session.inspect() is None


@pytest.mark.asyncio
async def test_a_created_slot_is_what_a_stream_needs(source: Source) -> None:
    async with opened(source) as session:
        slot = await session.create()
        assert (slot.slot_type, slot.plugin, slot.temporary) == ("logical", "pgoutput", False)
        assert (slot.database, slot.same_database) == (source.database.name, True)
        assert (slot.wal_status, slot.invalidation_reason) == ("reserved", None)
        assert slot.confirmed_flush_lsn is not None
        assert slot.restart_lsn is not None
        assert slot.restart_lsn <= slot.confirmed_flush_lsn <= source.wal_position()
        assert finding_about(slot) is None


@pytest.mark.asyncio
async def test_creating_a_slot_that_another_just_created_takes_that_one(source: Source) -> None:
    source.create_slot()
    before = source.slot_row()
    async with opened(source) as session:
        slot = await session.create()
    assert slot.confirmed_flush_lsn == parse_lsn(before["confirmed"])
    assert source.slot_row() == before


@pytest.mark.asyncio
async def test_a_lock_timeout_does_not_outlive_the_creation(source: Source) -> None:
    async with opened(source) as session:
        await session.create()
        assert session._wire is not None
        [result] = await session._wire.query("SHOW lock_timeout", phase="startup")
        assert result.get_value(0, 0) == b"0"


@pytest.mark.asyncio
async def test_a_slot_of_another_database_is_known_for_one(
    server: Postgres, source: Source
) -> None:
    source.create_slot()
    with Database(server) as elsewhere:
        async with opened(source, dsn=elsewhere.dsn) as session:
            slot = await session.inspect()
    assert slot is not None
    assert (slot.same_database, slot.database) == (False, source.database.name)
    assert finding_about(slot) == "slot_of_other_database"


@pytest.mark.parametrize(
    ("create", "finding"),
    [
        ("SELECT pg_create_physical_replication_slot(%s)", "slot_is_physical"),
        ("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", "slot_of_other_plugin"),
    ],
)
@pytest.mark.asyncio
async def test_a_slot_that_is_not_for_us_is_told_from_ours(
    source: Source, create: str, finding: str
) -> None:
    source.database.sql(create, [source.slot])
    async with opened(source) as session:
        slot = await session.inspect()
    assert slot is not None
    assert finding_about(slot) == finding


@pytest.mark.asyncio
async def test_a_temporary_slot_of_another_session_is_told_from_ours(source: Source) -> None:
    with psycopg.connect(source.dsn, autocommit=True) as other:
        pid = other.info.backend_pid
        other.execute(
            "SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [source.slot]
        )
        async with opened(source) as session:
            slot = await session.inspect()
    assert slot is not None
    assert slot.active_pid == pid
    assert finding_about(slot) == "slot_is_temporary"


@pytest.mark.asyncio
async def test_a_slot_whose_wal_was_removed_is_lost_and_fails(own_source: Source) -> None:
    source, server = own_source, own_source.database.server
    source.create_slot()
    for setting in ("max_slot_wal_keep_size = '1MB'", "max_wal_size = '32MB'"):
        run_sql(server, f"ALTER SYSTEM SET {setting}")
    run_sql(server, "SELECT pg_reload_conf()")
    for _ in range(6):
        run_sql(server, "SELECT pg_logical_emit_message(true, '', repeat('x', 10000000))")
        run_sql(server, "SELECT pg_switch_wal()")
        run_sql(server, "CHECKPOINT")
    async with opened(source) as session:
        slot = await session.inspect()
        assert slot is not None
        assert slot.wal_status == "lost"
        assert finding_about(slot) == "slot_lost"
    async with source.keeper() as keeper:
        assert await reach(keeper, "Failed", "Streaming") == "Failed"
        assert keeper.health.error_class == "data_loss"
        assert "copy the tables again" in (keeper.health.remedy or "")


@pytest.mark.asyncio
async def test_publications_are_looked_for_by_their_exact_names(source: Source) -> None:
    source.database.sql('CREATE PUBLICATION "It\'s" FOR TABLE t')
    async with opened(source, publication=[source.publication, "It's"]) as session:
        await session.check_publication()
    for missing in ("it's", "'); DROP TABLE t; --", source.publication.upper()):
        async with opened(source, publication=[source.publication, missing]) as session:
            with pytest.raises(SessionError) as raised:
                await session.check_publication()
        assert raised.value.facts["finding"] == "publication_missing"
        assert raised.value.facts["publication"] == missing
    assert source.database.sql("SELECT count(*) FROM t") == [(0,)]


@pytest.mark.asyncio
async def test_a_slot_in_use_is_refused_and_leaves_the_session_whole(source: Source) -> None:
    source.create_slot()
    async with opened(source, lease=60) as rival, opened(source) as session:
        await rival.start(0)
        for _ in range(3):
            with pytest.raises(SessionError) as raised:
                await session.start(0)
            error = raised.value
            assert (error.phase, error.sqlstate, error.routine) == (
                "start",
                "55006",
                "ReplicationSlotAcquire",
            )
            assert error.facts["slot"] == source.slot
        slot = await session.inspect()
        assert slot is not None
        assert slot.active_pid is not None
        holder = await session.holder(slot.active_pid)
        assert (holder.application_name, holder.user) == ("slotkeeper", "postgres")
        rival.close()
        async with asyncio.timeout(10):
            while True:
                try:
                    await session.start(0)
                except SessionError:
                    await asyncio.sleep(0.02)
                else:
                    break
    assert eventually(source.is_free)


@pytest.mark.asyncio
async def test_a_backend_that_is_gone_is_only_a_pid(source: Source) -> None:
    async with opened(source) as session:
        holder = await session.holder(999_999_999)
    assert (holder.pid, holder.application_name, holder.user) == (999_999_999, None, None)


@pytest.mark.asyncio
async def test_a_stream_begins_where_the_slot_stands_and_not_before(source: Source) -> None:
    """A start behind confirmed_flush is moved forward by the server: nothing comes twice."""
    source.create_slot()
    source.insert_each(1, 4)
    async with source.keeper() as keeper:
        assert await read(keeper, 2) == [1, 2]
        assert await until(lambda: source.confirmed() >= keeper.health.flushed)
    async with source.keeper() as keeper:
        assert await read(keeper, 2) == [3, 4]


@pytest.mark.asyncio
async def test_a_slot_advanced_by_hand_is_taken_from_there(source: Source) -> None:
    source.create_slot()
    source.insert(1, 1)
    position = source.database.sql("SELECT pg_current_wal_lsn()::text")[0][0]
    source.insert(2, 2)
    source.database.sql("SELECT pg_replication_slot_advance(%s, %s)", [source.slot, position])
    async with source.keeper() as keeper:
        assert await read(keeper, 1) == [2]


@pytest.mark.asyncio
async def test_a_keeper_uses_a_slot_that_was_made_by_hand(source: Source) -> None:
    source.create_slot()
    source.insert(1, 1)
    async with source.keeper(slot_policy="require") as keeper:
        assert await read(keeper, 1) == [1]


@pytest.mark.asyncio
async def test_two_keepers_that_create_the_same_slot_at_once_agree(source: Source) -> None:
    """Different locks, so that both get to CREATE: one streams, the other one waits for it."""
    async with (
        source.keeper(lock_key=1) as one,
        source.keeper(lock_key=2) as two,
    ):
        await asyncio.gather(
            reach(one, "Streaming", "BackingOff"), reach(two, "Streaming", "BackingOff")
        )
        assert await until(lambda: {one.state, two.state} >= {"Streaming"})
        loser = two if one.state == "Streaming" else one
        assert loser.state in ("BackingOff", "Acquiring")
        assert "Failed" not in (one.state, two.state)
        [(count,)] = source.database.sql(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", [source.slot]
        )
        assert count == 1
