"""The wire against real servers."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from fsm.errors import SessionError
from fsm.postgres import conninfo
from fsm.postgres.wire import Drained, Wire, connect_first, rows
from tests.support.certificate import make_certificate
from tests.support.servers import run_sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fsm.embedded import Mode, Postgres
    from tests.support.servers import Database, Servers

pytestmark = pytest.mark.asyncio

STATUS = struct.pack(">cQQQqB", b"r", 0, 0, 0, 0, 0)
"""A standby status update that confirms nothing."""


async def connected(dsn: str, lease: float = 10.0, **keywords: str) -> Wire:
    given = {**conninfo_to_dict(dsn), **keywords}
    attempts = await conninfo.attempts(given, conninfo.session_parameters(lease=lease))
    return await connect_first(attempts, seconds=30)


@asynccontextmanager
async def wired(dsn: str, lease: float = 10.0, **keywords: str) -> AsyncIterator[Wire]:
    wire = await connected(dsn, lease=lease, **keywords)
    try:
        yield wire
    finally:
        wire.finish()


async def refused(dsn: str, **keywords: str) -> SessionError:
    with pytest.raises(SessionError) as caught:
        await connected(dsn, lease=10.0, **keywords)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    return caught.value


async def value(wire: Wire, sql: str) -> str | None:
    return rows((await wire.query(sql, phase="lock"))[-1])[0][0]


class Feed:
    """A table that is published, and a slot."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.slot = database.unique("slot")
        database.sql("CREATE TABLE t (id serial, payload text)")
        database.sql("ALTER TABLE t ALTER payload SET STORAGE EXTERNAL")
        database.sql("CREATE PUBLICATION p FOR TABLE t")
        database.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [self.slot])

    def insert(self, count: int, size: int) -> None:
        self.database.sql(
            "INSERT INTO t (payload) SELECT repeat('x', %s) FROM generate_series(1, %s)",
            [size, count],
        )

    async def start(self, wire: Wire) -> None:
        await wire.start_copy_both(start_command(self.slot))

    def walsender(self) -> int | None:
        query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s"
        ((pid,),) = self.database.sql(query, [self.slot])
        return pid if pid is None else int(pid)


def start_command(slot: str, publication: str = "p") -> str:
    return (
        f'START_REPLICATION SLOT "{slot}" LOGICAL 0/0'
        f" (proto_version '1', publication_names '\"{publication}\"')"
    )


@pytest.fixture
def feed(database: Database) -> Feed:
    return Feed(database)


async def drained(wire: Wire, limit: int = 500, seconds: float = 20) -> Drained:
    """The next that is there to drain. As in a stream, only the wire says when to look."""
    arrived = asyncio.Event()
    wire.watch(arrived.set)
    try:
        async with asyncio.timeout(seconds):
            while True:
                await arrived.wait()
                arrived.clear()
                result = wire.drain(limit)
                if result.messages:
                    return result
    finally:
        wire.unwatch()


async def changes(wire: Wire, count: int) -> int:
    """Read until ``count`` rows were inserted; the bytes that were read."""
    seen = size = 0
    while seen < count:
        result = await drained(wire)
        size += result.size
        seen += sum(one[0] == ord("w") and one[25] == ord("I") for one in result.messages)
        wire.send_copy(STATUS)
    assert seen == count
    return size


async def end_of(wire: Wire) -> SessionError:
    while True:
        try:
            await drained(wire)
        except SessionError as error:
            return error


async def until(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


# --- connecting


async def test_a_missing_database_is_told_with_its_sqlstate(server: Postgres) -> None:
    error = await refused(server.dsn("no_such_database"))
    assert (error.phase, error.sqlstate, error.routine) == ("startup", "3D000", "InitPostgres")
    assert error.facts["message"] == 'database "no_such_database" does not exist'


async def test_a_role_without_the_replication_right_is_told_with_its_sqlstate(
    database: Database,
) -> None:
    role = database.unique("plain")
    database.sql(f'CREATE ROLE "{role}" LOGIN')
    error = await refused(database.dsn, user=role)
    assert (error.phase, error.sqlstate, error.routine) == ("startup", "42501", "InitPostgres")


async def test_a_missing_role_is_told_with_its_sqlstate(server: Postgres) -> None:
    error = await refused(server.dsn(user="no_such_role"))
    assert (error.phase, error.sqlstate) == ("startup", "28000")
    assert error.routine == "InitializeSessionUserId"


async def test_an_option_that_the_server_does_not_know_is_told_with_its_sqlstate(
    server: Postgres,
) -> None:
    error = await refused(server.dsn(), options="-c no_such_setting=1")
    assert (error.phase, error.sqlstate) == ("startup", "42704")


async def test_wrong_and_missing_passwords_are_told_apart(own_server: Postgres) -> None:
    run_sql(own_server, "CREATE ROLE app LOGIN REPLICATION PASSWORD 'right'")
    hba = own_server.data / "pg_hba.conf"
    hba.write_text(f"host all app 127.0.0.1/32 scram-sha-256\n{hba.read_text()}")
    run_sql(own_server, "SELECT pg_reload_conf()")
    dsn = own_server.dsn(user="app")
    wrong = await refused(dsn, password="wr0ng")  # noqa: S106  (of nobody)
    assert (wrong.phase, wrong.sqlstate, wrong.routine) == ("startup", "28P01", "auth_failed")
    assert wrong.facts["used_password"] is True
    assert "wr0ng" not in f"{wrong} {wrong.facts}"
    missing = await refused(dsn, passfile=os.devnull)
    assert (missing.phase, missing.sqlstate) == ("startup", None)
    assert missing.facts["needs_password"] is True
    assert missing.facts["server_spoke"] is False
    async with wired(dsn, password="right") as wire:  # noqa: S106  (of nobody)
        assert await value(wire, "SELECT current_user") == "app"


async def test_a_server_without_free_walsenders_is_told_with_its_sqlstate(
    servers: Servers, installed: int
) -> None:
    with servers.make(installed, {"max_wal_senders": "1"}) as server:
        async with wired(server.dsn()):
            error = await refused(server.dsn())
    assert (error.phase, error.sqlstate, error.routine) == ("startup", "53300", "InitProcess")


async def test_a_unix_domain_socket_serves_too(database: Database) -> None:
    server = database.server
    async with wired(database.dsn, host=str(server.socket_dir), port=str(server.port)) as wire:
        assert await value(wire, "SELECT inet_client_addr() IS NULL") == "t"


async def test_a_server_that_starts_is_told_from_one_that_is_down(own_server: Postgres) -> None:
    dsn = own_server.dsn()
    own_server.stop("immediate")
    down = await refused(dsn)
    assert (down.phase, down.sqlstate) == ("connect", None)
    assert down.facts["conn_status"] == "STARTED"
    assert down.facts["errno"] > 0


async def test_the_first_host_that_is_up_is_taken(database: Database) -> None:
    port = str(database.server.port)
    async with wired(database.dsn, host="127.0.0.1,127.0.0.1", port=f"1,{port}") as wire:
        assert await value(wire, "SELECT 1") == "1"


@pytest.mark.parametrize("wanted", ["standby", "read-only"])
async def test_a_server_of_the_wrong_role_is_told_by_what_was_asked(
    server: Postgres, wanted: str
) -> None:
    error = await refused(server.dsn(), target_session_attrs=wanted)
    assert (error.phase, error.sqlstate) == ("startup", None)
    assert error.facts["target_session_attrs"] == wanted
    assert error.facts["eof"] is False


async def test_a_plain_replication_role_gets_every_setting_of_the_lease(database: Database) -> None:
    role = database.unique("consumer")
    database.sql(f'CREATE ROLE "{role}" LOGIN REPLICATION')
    for hostile in (
        "statement_timeout = 1",
        "lock_timeout = 1",
        "search_path = nowhere",
        "client_min_messages = error",
        "DateStyle = 'German'",
        "IntervalStyle = sql_standard",
        "TimeZone = 'Asia/Tokyo'",
        "extra_float_digits = -15",
        "bytea_output = escape",
        "standard_conforming_strings = on",
        "idle_session_timeout = 1",
        "wal_sender_timeout = 1",
        "tcp_user_timeout = 1",
    ):
        database.sql(f'ALTER ROLE "{role}" SET {hostile}')
    expected = {
        "wal_sender_timeout": "3s",
        "idle_session_timeout": "3s",
        "idle_in_transaction_session_timeout": "3s",
        "tcp_user_timeout": "0",
        "tcp_keepalives_idle": "1",
        "tcp_keepalives_interval": "1",
        "tcp_keepalives_count": "2",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "client_min_messages": "warning",
        "search_path": "pg_catalog",
        "standard_conforming_strings": "on",
        "DateStyle": "ISO, MDY",
        "IntervalStyle": "postgres",
        "TimeZone": "UTC",
        "extra_float_digits": "3",
        "bytea_output": "hex",
        "client_encoding": "UTF8",
        "application_name": "slotkeeper",
        "client_connection_check_interval": "1s",
    }
    async with wired(database.dsn, lease=3.0, user=role) as wire:
        for setting in conninfo.after_connect_settings(wire.server_version, lease=3.0):
            await wire.query(setting.sql, phase="startup")
        if wire.server_version >= 170000:
            expected["transaction_timeout"] = "0"
        seen = {name: await value(wire, f"SHOW {name}") for name in expected}
    # A style of DateStyle that is not named keeps its order of day and month.
    seen["DateStyle"] = str(seen["DateStyle"]).replace("DMY", "MDY")
    assert seen == expected


# --- statements


async def test_an_error_leaves_the_connection_to_the_next_statement(database: Database) -> None:
    async with wired(database.dsn) as wire:
        with pytest.raises(SessionError) as caught:
            await wire.query("SELECT 1/0", phase="publication_check")
        error = caught.value
        assert (error.phase, error.sqlstate) == ("publication_check", "22012")
        assert error.facts["severity"] == "ERROR"
        assert error.routine == "int4div"
        assert isinstance(error.__cause__, psycopg.errors.DivisionByZero)
        assert await value(wire, "SELECT 'Grüße'") == "Grüße"
        assert int(await value(wire, "SELECT pg_backend_pid()") or 0) == wire.backend_pid


async def test_a_missing_slot_leaves_the_connection_whole(database: Database) -> None:
    async with wired(database.dsn) as wire:
        with pytest.raises(SessionError) as caught:
            await wire.start_copy_both(start_command("no_such_slot"))
        assert (caught.value.phase, caught.value.sqlstate) == ("start", "42704")
        assert caught.value.routine == "ReplicationSlotAcquire"
        assert (await wire.query("IDENTIFY_SYSTEM", phase="startup"))[0].ntuples == 1


async def test_a_plain_connection_that_was_asked_to_stream_says_so(database: Database) -> None:
    (attempt,) = await conninfo.attempts(database.dsn, {})
    wire = await Wire.connect(attempt)
    with pytest.raises(SessionError) as caught:
        await wire.start_copy_both(start_command("any"))
    assert caught.value.sqlstate == "42601"
    wire.finish()


async def test_a_large_answer_comes_whole(database: Database) -> None:
    async with wired(database.dsn) as wire:
        (result,) = await wire.query(
            "SELECT repeat('x', 1000) FROM generate_series(1, 20000)", phase="lock"
        )
        assert sum(len(row[0] or "") for row in rows(result)) == 20_000_000


async def test_a_session_that_was_terminated_tells_why_at_the_next_statement(
    database: Database,
) -> None:
    async with wired(database.dsn) as wire:
        database.sql("SELECT pg_terminate_backend(%s, 10000)", [wire.backend_pid])
        with pytest.raises(SessionError) as caught:
            await wire.query("SELECT 1", phase="lock")
        assert caught.value.sqlstate == "57P01"
        assert caught.value.routine == "ProcessInterrupts"


async def test_a_waiter_that_vanished_does_not_get_the_lock(database: Database) -> None:
    async with wired(database.dsn) as holder, wired(database.dsn, lease=2.0) as waiter:
        await holder.query("SELECT pg_advisory_lock(7)", phase="lock")
        for setting in conninfo.after_connect_settings(waiter.server_version, lease=2.0):
            await waiter.query(setting.sql, phase="startup")
        pid = waiter.backend_pid
        waiting = asyncio.create_task(
            waiter.query("SELECT pg_advisory_lock(7)", phase="lock"), name="waiting"
        )
        queued = "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted"
        await until(lambda: database.sql(queued, [pid]))
        waiting.cancel()
        await asyncio.wait({waiting})
        await until(lambda: not database.sql(queued, [pid]), seconds=4)


# --- the stream


async def test_rows_arrive_and_the_stream_ends_in_order(feed: Feed) -> None:
    async with wired(feed.database.dsn) as wire:
        await feed.start(wire)
        feed.insert(3, 10)
        await changes(wire, 3)
        async with asyncio.timeout(10):
            await wire.end_copy()
        assert not wire.closed
    await until(lambda: feed.walsender() is None)


async def test_a_terminated_walsender_tells_why(feed: Feed) -> None:
    async with wired(feed.database.dsn) as wire:
        await feed.start(wire)
        feed.database.sql("SELECT pg_terminate_backend(%s)", [wire.backend_pid])
        error = await end_of(wire)
    assert (error.phase, error.sqlstate) == ("streaming", "57P01")
    assert error.routine == "ProcessInterrupts"
    assert error.facts["severity"] == "FATAL"


async def test_a_cancelled_stream_tells_why(feed: Feed) -> None:
    async with wired(feed.database.dsn) as wire:
        await feed.start(wire)
        feed.database.sql("SELECT pg_cancel_backend(%s)", [wire.backend_pid])
        error = await end_of(wire)
    assert (error.phase, error.sqlstate) == ("streaming", "57014")


@pytest.mark.parametrize(("mode", "fact"), [("fast", "end_of_copy"), ("immediate", "eof")])
async def test_an_orderly_stop_of_the_server_is_told_from_a_sudden_one(
    own_server: Postgres, mode: Mode, fact: str
) -> None:
    run_sql(own_server, "CREATE PUBLICATION p")
    run_sql(own_server, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    async with wired(own_server.dsn()) as wire:
        await wire.start_copy_both(start_command("s"))
        stopping = asyncio.create_task(asyncio.to_thread(own_server.stop, mode))
        error = await confirm_until_end(wire)
        await stopping
    assert (error.phase, error.sqlstate) == ("streaming", None)
    assert error.facts[fact] is True


async def confirm_until_end(wire: Wire) -> SessionError:
    """Confirm all that is sent: an orderly stop of the server waits for that."""
    while True:
        try:
            messages = (await drained(wire)).messages
        except SessionError as error:
            return error
        for one in messages:
            if one[0] == ord("k"):
                (end,) = struct.unpack_from(">xQ", one)
                with suppress(SessionError):
                    wire.send_copy(struct.pack(">cQQQqB", b"r", end, end, end, 0, 0))


async def test_a_killed_walsender_is_an_end_without_a_word(own_server: Postgres) -> None:
    run_sql(own_server, "CREATE PUBLICATION p")
    run_sql(own_server, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    async with wired(own_server.dsn()) as wire:
        await wire.start_copy_both(start_command("s"))
        os.kill(wire.backend_pid, 9)
        error = await end_of(wire)
    assert (error.phase, error.sqlstate, error.facts["eof"]) == ("streaming", None, True)


async def test_twenty_megabytes_pass_a_reader_that_is_slow_and_keeps_replying(feed: Feed) -> None:
    async with wired(feed.database.dsn) as wire, asyncio.timeout(60):
        await feed.start(wire)
        feed.insert(20_000, 1000)
        seen = size = 0
        while seen < 20_000:
            result = await drained(wire, limit=50)
            size += result.size
            seen += sum(one[0] == ord("w") and one[25] == ord("I") for one in result.messages)
            for _ in range(20):
                wire.send_copy(STATUS)
            await asyncio.sleep(0.001)
    assert size > 20_000_000


async def test_a_host_that_does_not_read_for_longer_than_the_lease_is_not_cut_off(
    feed: Feed,
) -> None:
    feed.insert(20_000, 1000)
    async with wired(feed.database.dsn, lease=1.5) as wire, asyncio.timeout(60):
        await feed.start(wire)
        deadline = time.monotonic() + 3.5
        while time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            wire.send_copy(STATUS)
        await changes(wire, 20_000)


async def test_a_client_that_does_not_reply_loses_its_slot_with_its_lease(feed: Feed) -> None:
    async with wired(feed.database.dsn, lease=1.0) as wire:
        await feed.start(wire)
        begin = time.monotonic()
        await until(lambda: feed.walsender() is None)
        assert time.monotonic() - begin < 4.0
        error = await end_of(wire)
    assert error.facts["eof"] is True


async def test_rows_of_any_size_arrive_at_once_under_tls(
    own_server: Postgres, tmp_path: Path
) -> None:
    try:
        _turn_on_tls(own_server, tmp_path)
    except psycopg.errors.InvalidParameterValue:
        pytest.skip("this server is built without TLS")
    run_sql(own_server, "CREATE TABLE t (payload text)")
    run_sql(own_server, "ALTER TABLE t ALTER payload SET STORAGE EXTERNAL")
    run_sql(own_server, "CREATE PUBLICATION p FOR TABLE t")
    run_sql(own_server, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    async with wired(own_server.dsn(), lease=60.0, sslmode="require") as wire:
        await wire.start_copy_both(start_command("s"))
        for size in (100, 8_000, 16_300, 16_400, 24_000, 33_000, 100_000, 300_000, 1_000_000):
            sql = "INSERT INTO t SELECT repeat('x', %s) FROM generate_series(1, 7)"
            run_sql(own_server, sql, [size])
            seen = 0
            while seen < 8:  # seven rows and the Commit
                # Nothing else would come for half of the lease.
                result = await drained(wire, seconds=5)
                kinds = [one[25] for one in result.messages if one[0] == ord("w")]
                seen += kinds.count(ord("I")) + kinds.count(ord("C"))


def _turn_on_tls(server: Postgres, folder: Path) -> None:
    owner = server.data.stat()
    for file in make_certificate(folder):
        target = server.data / file.name
        shutil.copy(file, target)
        os.chown(target, owner.st_uid, owner.st_gid)
        target.chmod(0o600)
    run_sql(server, "ALTER SYSTEM SET ssl = on")
    run_sql(server, "SELECT pg_reload_conf()")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts in /proc")
async def test_no_descriptor_is_left_whatever_happened(feed: Feed) -> None:
    dsn = feed.database.dsn
    await _one_of_each(feed, dsn)  # what Python opens once and keeps is open after this
    before = _descriptors()
    for _ in range(3):
        await _one_of_each(feed, dsn)
    assert _descriptors() == before


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _one_of_each(feed: Feed, dsn: str) -> None:
    await refused(dsn, dbname="no_such_database")
    await refused(dsn, port="1")
    async with wired(dsn) as wire:
        with pytest.raises(SessionError):
            await wire.query("SELECT 1/0", phase="lock")
    async with wired(dsn) as wire:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await wire.query("SELECT pg_sleep(0.3)", phase="lock")
    async with wired(dsn) as wire:
        await feed.start(wire)
        feed.database.sql("SELECT pg_terminate_backend(%s)", [wire.backend_pid])
        await end_of(wire)
    await until(lambda: feed.walsender() is None)
    async with wired(dsn) as wire:
        await feed.start(wire)
        async with asyncio.timeout(10):
            await wire.end_copy()
    await until(lambda: feed.walsender() is None)
