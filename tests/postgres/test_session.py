"""One walsender session: what it sets, what it finds out, and who may have one."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from fsm.embedded import free_port
from fsm.errors import SessionError
from fsm.machine.loader import shipped
from fsm.postgres.slot import rows
from tests.support.binaries import wanted
from tests.support.command import Command
from tests.support.source import Source, errors_of, eventually, items_of, reach, read, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fsm.machine.spec import Spec
    from fsm.postgres.session import PostgresSession


@asynccontextmanager
async def opened(source: Source, **options: Any) -> AsyncIterator[PostgresSession]:
    session = source.session(**options)
    try:
        await session.open()
        yield session
    finally:
        session.close()


async def shown(session: PostgresSession, name: str) -> str | None:
    """What the session itself SHOWs."""
    assert session._wire is not None
    return rows(await session._wire.query(f"SHOW {name}", phase="startup"))[0][0]


def role_with(source: Source, *settings: str) -> str:
    """The DSN of a role that may only replicate, with settings of its own."""
    role = source.database.unique("role")
    source.database.sql(f"CREATE ROLE {role} LOGIN REPLICATION")
    for setting in settings:
        source.database.sql(f"ALTER ROLE {role} SET {setting}")
    return source.database.server.dsn(source.database.name, user=role)


@pytest.mark.asyncio
async def test_the_session_learns_who_its_server_is(source: Source) -> None:
    session = source.session()
    try:
        server = await session.open()
    finally:
        session.close()
    [(number, system_id)] = source.database.sql(
        "SELECT current_setting('server_version_num')::int, system_identifier::text"
        " FROM pg_control_system()"
    )
    assert (server.server_version, server.system_id) == (number, system_id)
    assert 0 < server.wal_position <= source.wal_position()


@pytest.mark.parametrize("role", ["superuser", "plain"])
@pytest.mark.asyncio
async def test_the_lease_is_what_the_session_shows(source: Source, role: str) -> None:
    dsn = source.dsn if role == "superuser" else role_with(source)
    async with opened(source, dsn=dsn, lease=6) as session:
        values = {
            name: await shown(session, name)
            for name in (
                "wal_sender_timeout",
                "idle_session_timeout",
                "idle_in_transaction_session_timeout",
                "tcp_keepalives_idle",
                "tcp_keepalives_interval",
                "tcp_keepalives_count",
                "tcp_user_timeout",
                "statement_timeout",
                "lock_timeout",
                "client_min_messages",
                "client_connection_check_interval",
                "application_name",
            )
        }
    assert values == {
        "wal_sender_timeout": "6s",
        "idle_session_timeout": "6s",
        "idle_in_transaction_session_timeout": "6s",
        "tcp_keepalives_idle": "3",
        "tcp_keepalives_interval": "1",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "0",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "client_min_messages": "warning",
        "client_connection_check_interval": "1s",
        "application_name": "slotkeeper",
    }


@pytest.mark.asyncio
async def test_an_application_name_is_the_hosts_choice(source: Source) -> None:
    async with opened(source, application_name="etl 'x'") as session:
        assert await shown(session, "application_name") == "etl 'x'"


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("statement_timeout", "'100ms'", "0"),
        ("lock_timeout", "'100ms'", "0"),
        ("idle_session_timeout", "'100ms'", "10s"),
        ("idle_in_transaction_session_timeout", "'100ms'", "10s"),
        ("wal_sender_timeout", "'100ms'", "10s"),
        ("client_min_messages", "'error'", "warning"),
        ("DateStyle", "'German, MDY'", "ISO, MDY"),
        ("IntervalStyle", "'sql_standard'", "postgres"),
        ("TimeZone", "'Asia/Kathmandu'", "UTC"),
        ("bytea_output", "'escape'", "hex"),
        ("extra_float_digits", "-10", "3"),
        ("search_path", "'public'", "pg_catalog"),
        ("client_encoding", "'LATIN1'", "UTF8"),
    ],
)
@pytest.mark.asyncio
async def test_a_setting_of_the_role_gives_way_to_ours(
    source: Source, name: str, theirs: str, ours: str
) -> None:
    async with opened(source, dsn=role_with(source, f"{name} = {theirs}")) as session:
        assert await shown(session, name) == ours


@pytest.mark.parametrize("version", [version for version in wanted() if version >= 17])
@pytest.mark.asyncio
async def test_a_transaction_timeout_of_the_role_gives_way_to_ours(source: Source) -> None:
    dsn = role_with(source, "transaction_timeout = '100ms'")
    async with opened(source, dsn=dsn) as session:
        assert await shown(session, "transaction_timeout") == "0"


HOSTILE = (
    "statement_timeout = '100ms'",
    "lock_timeout = '100ms'",
    "idle_session_timeout = '150ms'",
    "wal_sender_timeout = '150ms'",
    "client_min_messages = 'error'",
    "DateStyle = 'German'",
    "IntervalStyle = 'sql_standard'",
    "TimeZone = 'Asia/Kathmandu'",
    "bytea_output = 'escape'",
    "extra_float_digits = -10",
    "search_path = 'nowhere'",
    "standard_conforming_strings = off",
    "default_transaction_read_only = on",
    "row_security = off",
)


@pytest.mark.asyncio
async def test_a_keeper_of_a_role_with_hostile_settings_waits_and_streams_like_any_other(
    source: Source,
) -> None:
    sql = source.database.sql
    settings = list(HOSTILE)
    if source.database.server.version >= 17:
        settings.append("transaction_timeout = '150ms'")
    sql(
        "CREATE TABLE v (id int PRIMARY KEY, d date, ts timestamp, tz timestamptz, b bytea,"
        " f float8, i interval)"
    )
    sql(f"ALTER PUBLICATION {source.publication} ADD TABLE v")
    dsn = role_with(source, *settings)
    async with source.keeper() as holder:
        await reach(holder, "Streaming")
        async with source.keeper(dsn=dsn) as keeper:
            assert await until(lambda: source.lock_pids(granted=False))
            await asyncio.sleep(0.6)
            assert errors_of(keeper) == []
            await holder.stop()
            await reach(keeper, "Streaming")
            await asyncio.sleep(0.6)
            sql(
                "INSERT INTO v VALUES (1, '2024-02-03', '2024-02-03 04:05:06',"
                r" '2024-02-03 04:05:06+00', '\x00ff', 0.1, '1 day -02:00')"
            )
            [change] = await items_of(keeper, 1)
            assert errors_of(keeper) == []
    assert change.as_dict()["new"] == {
        "id": 1,
        "d": "2024-02-03",
        "ts": "2024-02-03T04:05:06",
        "tz": "2024-02-03T04:05:06+00:00",
        "b": r"\x00ff",
        "f": 0.1,
        "i": "P1DT-2H",
    }


@pytest.mark.asyncio
async def test_a_role_that_may_only_replicate_can_do_all_that_is_needed(source: Source) -> None:
    """It creates the slot, streams, and names the rival that holds the lock."""
    dsn = role_with(source)
    async with source.keeper(dsn=dsn, application_name="one") as first:
        source.insert(1, 1)
        await reach(first, "Streaming")
        source.insert(2, 2)
        assert (await read(first, 1))[-1] == 2
        async with source.keeper(dsn=dsn) as second:
            assert await until(lambda: second.health.holder)
            pid = source.slot_row()["active_pid"]
            assert second.health.holder is not None
            assert second.health.holder.startswith(f"pid {pid}, app 'one', user 'role_")


@pytest.mark.asyncio
async def test_a_session_that_is_closed_says_so_at_every_method(source: Source) -> None:
    async with opened(source) as session:
        session.close()
        session.close()
        for call in (
            session.lock(1),
            session.inspect(),
            session.create(),
            session.check_publication(),
            session.start(0),
            session.ping(),
        ):
            with pytest.raises(SessionError) as raised:
                await call
            assert raised.value.facts["closed"]
        session.acknowledge(1)
        await session.end_stream(1)


@pytest.mark.asyncio
async def test_a_session_closed_while_it_waits_lets_the_wait_end(source: Source) -> None:
    async with opened(source) as holder, opened(source) as waiter:
        assert await holder.lock(1)
        waiting = asyncio.create_task(waiter.lock(30))
        assert await until(lambda: source.lock_pids(granted=False))
        waiter.close()
        with pytest.raises(SessionError):
            async with asyncio.timeout(5):
                await waiting


@pytest.mark.asyncio
async def test_a_frozen_holder_loses_lock_and_slot_within_the_lease(source: Source) -> None:
    """Its process is stopped while it holds both: a standby goes on all the same."""
    source.create_slot()
    with Command(
        "run", source.dsn, "--slot", source.slot, "--publication", source.publication,
        "--lease", "2",
    ) as command:  # fmt: skip
        command.until_streaming()
        command.send(signal.SIGSTOP)
        try:
            async with source.keeper(lease=2) as standby:
                await reach(standby, "Streaming", seconds=15)
                source.insert(1, 1)
                assert await read(standby, 1) == [1]
                command.send(signal.SIGCONT)
                source.insert(2, 2)
                assert await read(standby, 1) == [2]
                assert command.changes == []
        finally:
            command.send(signal.SIGCONT)
        command.until(lambda one: any("-> Streaming" in x for x in one.err[-4:]))
        command.send(signal.SIGTERM)
        assert command.exit_code() == 0


@pytest.mark.asyncio
async def test_a_session_that_holds_the_lock_and_goes_silent_loses_it(source: Source) -> None:
    """Nothing streams and nothing is asked: idle_session_timeout ends it."""
    async with opened(source, lease=1) as silent:
        assert await silent.lock(1)
        async with opened(source) as waiter:
            async with asyncio.timeout(10):
                assert await waiter.lock(9)


def with_long_waits() -> Spec:
    """The shipped machine, but a rival is given half a minute."""
    spec = shipped()
    patient = {"initial_delay": 30.0, "max_delay": 30.0, "jitter": "none"}
    waits = spec.policies["error_wait"].model_copy(update=patient)
    return spec.model_copy(update={"policies": {**spec.policies, "error_wait": waits}})


@pytest.mark.asyncio
async def test_pings_keep_a_session_that_does_not_stream(source: Source) -> None:
    """The slot is held by another, for longer than the lease; lock and session stay."""
    source.create_slot()
    rival = source.session(lease=60)
    await rival.open()
    await rival.start(0)
    try:
        async with source.keeper(lease=1, spec=with_long_waits()) as keeper:
            await reach(keeper, "BackingOff")
            [pid] = source.lock_pids(granted=True)
            await asyncio.sleep(3)
            assert keeper.state == "BackingOff"
            assert source.lock_pids(granted=True) == [pid]
            assert {record.error_class for record in errors_of(keeper)} == {"contention"}
            rival.close()
            keeper.retry_now()
            await reach(keeper, "Streaming")
            assert source.slot_row()["active_pid"] == pid
    finally:
        rival.close()


@pytest.mark.asyncio
async def test_a_kept_session_that_is_lost_leads_back_to_locking(source: Source) -> None:
    source.create_slot()
    rival = source.session(lease=60)
    await rival.open()
    await rival.start(0)
    try:
        async with source.keeper(lease=1) as keeper:
            await reach(keeper, "BackingOff")
            [pid] = source.lock_pids(granted=True)
            source.database.sql("SELECT pg_terminate_backend(%s)", [pid])
            assert await until(lambda: source.lock_pids(granted=True) not in ([], [pid]))
            rival.close()
            await reach(keeper, "Streaming")
    finally:
        rival.close()


@pytest.mark.asyncio
async def test_a_server_process_that_is_frozen_in_mid_stream_is_given_up(source: Source) -> None:
    """Nothing comes from it for the length of the lease, and no answer to our question."""
    async with source.keeper(lease=1) as keeper:
        await reach(keeper, "Streaming")
        pid = source.slot_row()["active_pid"]
        subprocess.run(["kill", "-STOP", str(pid)], check=True)
        try:
            assert await until(lambda: errors_of(keeper))
            assert errors_of(keeper)[0].error_class == "transient_network"
            assert errors_of(keeper)[0].facts["finding"] == "silence"
        finally:
            subprocess.run(["kill", "-CONT", str(pid)], check=True)
        source.insert(1, 1)
        assert await read(keeper, 1) == [1]


@pytest.mark.asyncio
async def test_what_the_session_is_asked_by_the_environment_is_taken(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = source.database.server
    monkeypatch.setenv("PGHOST", server.host)
    monkeypatch.setenv("PGPORT", str(server.port))
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("PGDATABASE", source.database.name)
    monkeypatch.setenv("PGAPPNAME", "from the environment")
    async with source.keeper(dsn="") as keeper:
        await reach(keeper, "Streaming")
        with psycopg.connect(source.dsn) as connection:
            found = connection.execute("SELECT application_name FROM pg_stat_replication")
            assert ("from the environment",) in found.fetchall()


@pytest.mark.asyncio
async def test_a_session_through_the_unix_socket_streams_as_well(source: Source) -> None:
    server = source.database.server
    dsn = {
        "host": str(server.socket_dir),
        "port": server.port,
        "user": "postgres",
        "dbname": source.database.name,
    }
    async with source.keeper(dsn=dsn) as keeper:
        await reach(keeper, "Streaming")
        source.insert(1, 1)
        assert await read(keeper, 1) == [1]
    assert eventually(source.is_free)


@pytest.mark.asyncio
async def test_of_several_hosts_the_one_that_answers_is_taken(source: Source) -> None:
    server = source.database.server
    dsn = (
        f"host={server.host},{server.host} port={free_port()},{server.port}"
        f" user=postgres dbname={source.database.name}"
    )
    async with source.keeper(dsn=dsn) as keeper:
        assert await reach(keeper, "Streaming", "BackingOff") == "Streaming"
