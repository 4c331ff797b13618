"""The wire against servers that misbehave: sockets of ours that speak a little of the protocol."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import struct
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from fsm.errors import SessionError
from fsm.postgres import conninfo
from fsm.postgres.faults import read_connect_text
from fsm.postgres.wire import Drained, Notice, Wire, connect_first, rows
from tests.support.certificate import make_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.asyncio


# --- a little of the server's side of the protocol (docs: protocol-message-formats.html)


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def report(kind: bytes, fields: dict[str, str]) -> bytes:
    return message(kind, b"".join(f"{k}{v}\0".encode() for k, v in fields.items()) + b"\0")


def failure(sqlstate: str, text: str, routine: str | None = None, severity: str = "FATAL") -> bytes:
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": text}
    located = {} if routine is None else {"F": "some.c", "L": "42", "R": routine}
    return report(b"E", {**fields, **located})


UP = (
    message(b"R", struct.pack(">I", 0))
    + message(b"S", b"server_version\x0015.18\0")
    + message(b"K", struct.pack(">II", 4711, 1))
    + message(b"Z", b"I")
)
COPY_BOTH = message(b"W", struct.pack(">bh", 0, 0))
READY = message(b"Z", b"I")


def copied(payload: bytes) -> bytes:
    return message(b"d", payload)


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    (size,) = struct.unpack(">I", await reader.readexactly(4))
    await reader.readexactly(size - 4)
    writer.write(UP)


async def asked(reader: asyncio.StreamReader) -> bytes:
    """The next message of the client."""
    _, size = struct.unpack(">cI", await reader.readexactly(5))
    return await reader.readexactly(size - 4)


def streaming(*messages: bytes) -> Handler:
    """A server that answers the first query by COPY BOTH and all of ``messages``, then closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await asked(reader)
        writer.write(COPY_BOTH + b"".join(messages))

    return serve


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A DSN of a server that runs ``handler`` for each connection, and closes after it."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"host=127.0.0.1 port={port} user=u password=s3cr3t sslmode=disable"


async def connected(dsn: str, on_notice: Callable[[Notice], None] | None = None) -> Wire:
    (attempt,) = await conninfo.attempts(dsn, {})
    return await Wire.connect(attempt, on_notice=on_notice, seconds=10)


async def refused(dsn: str, seconds: float = 10) -> SessionError:
    (attempt,) = await conninfo.attempts(dsn, {})
    with pytest.raises(SessionError) as caught:
        await Wire.connect(attempt, seconds=seconds)
    assert "s3cr3t" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


async def drained(wire: Wire, limit: int = 500) -> Drained:
    """The next that is there to drain. As in a stream, only the wire says when to look."""
    arrived = asyncio.Event()
    wire.watch(arrived.set)
    try:
        async with asyncio.timeout(10):
            while True:
                await arrived.wait()
                arrived.clear()
                result = wire.drain(limit)
                if result.messages:
                    return result
    finally:
        wire.unwatch()


async def end_of(wire: Wire) -> tuple[list[bytes], SessionError]:
    seen: list[bytes] = []
    while True:
        try:
            seen += [bytes(one) for one in (await drained(wire)).messages]
        except SessionError as error:
            return seen, error


def open_sockets() -> set[str]:
    links = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            links.add(str(entry.readlink()))
    return {link for link in links if link.startswith("socket:")}


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts in /proc")


# --- connecting


async def test_a_server_that_says_nothing_is_a_timeout_of_start_up() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(mute) as dsn:
        error = await refused(dsn, seconds=0.1)
        assert error.phase == "startup"
        assert error.facts["timeout"] is True
        assert error.facts["conn_status"] == "AWAITING_RESPONSE"
        tls = await refused(dsn.replace("disable", "prefer"), seconds=0.1)
        assert tls.phase == "ssl"
        assert tls.facts["conn_status"] == "SSL_STARTUP"


async def test_the_dsn_s_own_timeout_counts_before_ours() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(mute) as dsn, asyncio.timeout(8):
        error = await refused(f"{dsn} connect_timeout=1", seconds=60)
    assert error.facts["timeout"] is True


@pytest.mark.parametrize(("sslmode", "phase"), [("disable", "startup"), ("require", "ssl")])
async def test_a_server_that_hangs_up_is_told_from_one_that_does_not_fit(
    sslmode: str, phase: str
) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    for handler, hung_up in ((close, True), (garbage, False)):
        async with serving(handler) as dsn:
            error = await refused(dsn.replace("disable", sslmode))
        assert error.phase == phase
        assert error.sqlstate is None
        assert error.facts["eof"] is hung_up
        assert error.facts["server_spoke"] is False


async def test_a_reset_is_told_with_its_errno() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with serving(reset) as dsn:
        error = await refused(dsn)
    assert error.phase == "startup"
    assert error.facts["eof"] is True
    assert error.facts["errno"] == errno.ECONNRESET


async def test_a_refused_port_is_told_with_its_errno() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        error = await refused(f"host=127.0.0.1 port={bound.getsockname()[1]}")
    assert error.phase == "connect"
    assert error.facts["conn_status"] == "STARTED"
    assert error.facts["errno"] == errno.ECONNREFUSED
    assert error.facts["host_kind"] == "tcp"
    assert os.strerror(errno.ECONNREFUSED) in str(error)
    assert isinstance(error.__cause__, psycopg.OperationalError)


async def test_a_socket_that_is_missing_is_told_with_its_errno(tmp_path: Path) -> None:
    error = await refused(f"host={tmp_path} port=5432")
    assert error.phase == "connect"
    assert error.facts["conn_status"] == "BAD"
    assert error.facts["errno"] == errno.ENOENT
    assert error.facts["host_kind"] == "unix"


async def test_a_parameter_that_cannot_be_used_comes_without_errno() -> None:
    async with serving(greet) as dsn:
        error = await refused(dsn.replace("disable", "sometimes"))
    assert error.phase == "connect"
    assert error.facts["conn_status"] == "BAD"
    assert "errno" not in error.facts
    assert "sometimes" in str(error)


async def test_an_error_of_a_server_comes_with_sqlstate_and_routine() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(failure("53300", "sorry, too many clients already", "InitProcess"))

    async with serving(refuse) as dsn:
        error = await refused(dsn)
    assert (error.phase, error.sqlstate, error.routine) == ("startup", "53300", "InitProcess")
    assert error.facts["message"] == "sorry, too many clients already"
    assert str(error).endswith("failed: sorry, too many clients already")
    assert "eof" not in error.facts


async def test_an_error_of_a_middleware_comes_without_routine() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(report(b"E", {"S": "FATAL", "C": "08P01", "M": "query_wait_timeout"}))

    async with serving(refuse) as dsn:
        error = await refused(dsn)
    assert (error.sqlstate, error.routine) == ("08P01", None)
    assert error.facts["message"] == "query_wait_timeout"


async def test_an_error_without_fields_shows_that_the_server_spoke() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"Ecould not fork new process for connection: out of memory\n\0")

    async with serving(refuse) as dsn:
        error = await refused(dsn)
    assert error.phase == "startup"
    assert error.sqlstate is None
    assert error.facts["server_spoke"] is True
    assert error.facts["eof"] is False
    assert "could not fork" in str(error)


@needs_proc
async def test_a_cancelled_or_failed_connect_leaves_no_socket() -> None:
    reached = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        reached.set()
        await reader.read()

    before = open_sockets()
    async with serving(mute) as dsn:
        listening = open_sockets()
        connecting = asyncio.create_task(connected(dsn))
        await reached.wait()
        assert len(open_sockets()) == len(listening) + 2
        connecting.cancel()
        # What is held here holds the frames, and with them whatever was not closed.
        with pytest.raises(asyncio.CancelledError) as held:
            await connecting
        failed = await refused(dsn, seconds=0.05)
        await until(lambda: open_sockets() == listening)
        assert held.value.__traceback__ is not None
        assert failed.facts["timeout"] is True
    assert open_sockets() <= before | listening


# --- several attempts


@pytest.mark.parametrize(
    ("first", "taken"),
    [
        (failure("57P03", "the database system is starting up", "ProcessStartupPacket"), True),
        (b"", True),
        (failure("28P01", "password authentication failed", "auth_failed"), False),
    ],
)
async def test_the_next_host_is_tried_unless_the_first_has_answered(
    first: bytes, *, taken: bool
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(first)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await reader.read()

    async with serving(refuse) as one, serving(serve) as two:
        attempts = await conninfo.attempts(one, {}) + await conninfo.attempts(two, {})
        if taken:
            (await connect_first(attempts)).finish()
            return
        with pytest.raises(SessionError) as caught:
            await connect_first(attempts)
    assert caught.value.sqlstate == "28P01"


async def test_the_error_of_the_last_host_is_raised_when_none_answers() -> None:
    async with serving(greet) as dsn:
        pass
    (gone,) = await conninfo.attempts(dsn, {})
    with pytest.raises(SessionError) as caught:
        await connect_first([gone, gone])
    assert caught.value.facts["errno"] == errno.ECONNREFUSED


# --- what libpq's texts hold


@pytest.mark.parametrize(
    ("text", "sqlstate", "routine", "primary"),
    [
        (
            (
                'connection to server at "127.0.0.1", port 5 failed: FATAL:  28P01: no\n'
                "LOCATION:  auth_failed, auth.c:334\n"
            ),
            "28P01",
            "auth_failed",
            "no",
        ),
        (
            (
                'connection to server at "h", port 5 failed: 致命错误:  28000: 角色 "u" 不存在\n'
                "位置:  InitializeSessionUserId, miscinit.c:736\n"
            ),
            "28000",
            "InitializeSessionUserId",
            '角色 "u" 不存在',
        ),
        (
            # French sets a space before its colons.
            (
                "connexion au serveur : FATAL:  57P03: arrêt\nDETAIL : mot, suite:  non\n"
                "EMPLACEMENT : ProcessStartupPacket, postmaster.c:1\n"
            ),
            "57P03",
            "ProcessStartupPacket",
            "arrêt",
        ),
        (
            # sslmode=prefer: an attempt with TLS, and one without.
            (
                "connection to a failed: FATAL:  28000: first\nLOCATION:  One, auth.c:1\n"
                "connection to a failed: FATAL:  53300: second\nLOCATION:  Two, proc.c:2\n"
            ),
            "53300",
            "Two",
            "second",
        ),
        (
            "connection to a failed: FATAL:  08P01: pooler says no\n",
            "08P01",
            None,
            "pooler says no",
        ),
        (
            'FATAL:  42704: role "x:  28P01: y" is odd\n',
            "42704",
            None,
            'role "x:  28P01: y" is odd',
        ),
        (
            "connection to a failed: Connection refused\n\tIs the server running on that host?\n",
            None,
            None,
            "connection to a failed: Connection refused",
        ),
        ("", None, None, "the connection failed and libpq does not say why"),
    ],
)
async def test_a_connection_error_is_read_in_any_language(
    text: str, sqlstate: str | None, routine: str | None, primary: str
) -> None:
    read = read_connect_text(text)
    assert (read.sqlstate, read.routine, read.primary) == (sqlstate, routine, primary)
    assert "LOCATION" not in read.line
    assert "\n" not in read.line


# --- statements


def answering(*answers: bytes) -> Handler:
    """A server that gives one answer to each query, then waits."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        for answer in answers:
            await asked(reader)
            writer.write(answer)
        await reader.read()

    return serve


ONE_ROW = (
    message(b"T", struct.pack(">h", 2) + (b"a\0" + struct.pack(">IhIhih", 0, 0, 25, -1, -1, 0)) * 2)
    + message(b"D", struct.pack(">hi", 2, 1) + b"x" + struct.pack(">i", -1))
    + message(b"C", b"SELECT 1\0")
)


async def test_rows_are_text_and_null_is_none() -> None:
    async with serving(answering(ONE_ROW + READY)) as dsn:
        wire = await connected(dsn)
        (result,) = await wire.query("SELECT", phase="lock")
        assert rows(result) == [("x", None)]
        assert wire.server_version == 150018
        assert wire.backend_pid == 4711
        assert wire.parameter("server_version") == "15.18"
        wire.finish()


async def test_the_first_error_counts_and_the_next_query_may_follow() -> None:
    errors = failure("42601", "first", "scanner_yyerror", "ERROR") + READY
    async with serving(answering(errors, ONE_ROW + READY)) as dsn:
        wire = await connected(dsn)
        with pytest.raises(SessionError) as caught:
            await wire.query("SELECT", phase="publication_check")
        error = caught.value
        assert (error.phase, error.sqlstate) == ("publication_check", "42601")
        assert error.routine == "scanner_yyerror"
        assert error.facts["severity"] == "ERROR"
        assert isinstance(error.__cause__, psycopg.errors.SyntaxError)
        assert len(await wire.query("SELECT", phase="lock")) == 1
        wire.finish()


async def test_the_last_words_of_a_server_count_more_than_its_hanging_up() -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await asked(reader)
        writer.write(failure("57P01", "terminating connection", "ProcessInterrupts"))

    async with serving(end) as dsn:
        wire = await connected(dsn)
        with pytest.raises(SessionError) as caught:
            await wire.query("SELECT", phase="lock")
        assert caught.value.sqlstate == "57P01"
        assert wire.closed
        wire.finish()


async def test_a_server_that_hangs_up_in_the_middle_of_an_answer_is_lost() -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await asked(reader)
        writer.write(ONE_ROW[:-3])

    async with serving(end) as dsn:
        wire = await connected(dsn)
        with pytest.raises(SessionError) as caught:
            await wire.query("SELECT", phase="lock")
        assert caught.value.sqlstate is None
        assert caught.value.facts["eof"] is True
        with pytest.raises(SessionError) as again:
            await wire.query("SELECT", phase="lock")
        assert again.value.facts["eof"] is True
        wire.finish()


async def test_an_answer_that_libpq_cannot_follow_ends_the_connection() -> None:
    async with serving(answering(b"D\xff\xff\xff\xff")) as dsn, asyncio.timeout(5):
        wire = await connected(dsn)
        with pytest.raises(SessionError) as caught:
            await wire.query("SELECT", phase="lock")
        assert caught.value.sqlstate is None
        assert wire.closed
        assert wire.socket == -1
        wire.finish()


async def test_notices_reach_their_receiver_with_sqlstate_and_routine() -> None:
    fields = {"S": "注意", "V": "WARNING", "C": "55000", "M": "skipped", "R": "LoadPublications"}
    seen: list[Notice] = []
    async with serving(answering(report(b"N", fields) + ONE_ROW + READY)) as dsn:
        wire = await connected(dsn, seen.append)
        await wire.query("SELECT", phase="lock")
        wire.finish()
    assert seen == [Notice("55000", "LoadPublications", "WARNING", "skipped")]


async def test_a_cancelled_query_closes_the_connection_whose_answer_is_still_to_come() -> None:
    closed = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await asked(reader)
        await reader.read()
        closed.set()

    async with serving(late) as dsn:
        wire = await connected(dsn)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await wire.query("SELECT", phase="lock")
        assert wire.closed
        async with asyncio.timeout(5):
            await closed.wait()
        with pytest.raises(SessionError) as caught:
            await wire.query("SELECT", phase="lock")
        assert caught.value.facts["closed"] is True


async def test_finish_wakes_who_waits_for_an_answer_and_may_be_called_twice() -> None:
    async with serving(answering()) as dsn:
        wire = await connected(dsn)
        waiting = asyncio.create_task(wire.query("SELECT", phase="lock"))
        await asyncio.sleep(0.05)
        wire.finish()
        wire.finish()
        with pytest.raises(SessionError) as caught:
            async with asyncio.timeout(5):
                await waiting
    assert (caught.value.phase, caught.value.facts["closed"]) == ("lock", True)
    assert (wire.socket, wire.backend_pid, wire.server_version) == (-1, 0, 0)


async def test_a_statement_that_begins_a_copy_is_refused_and_not_waited_for() -> None:
    copy_out = message(b"H", struct.pack(">bh", 0, 0))
    async with serving(answering(copy_out)) as dsn:
        wire = await connected(dsn)
        async with asyncio.timeout(5):
            with pytest.raises(SessionError, match="COPY"):
                await wire.query("COPY t TO STDOUT", phase="lock")
        assert wire.closed


async def test_an_answer_other_than_copy_both_is_no_stream() -> None:
    async with serving(answering(ONE_ROW + READY)) as dsn:
        wire = await connected(dsn)
        with pytest.raises(SessionError, match="no walsender") as caught:
            await wire.start_copy_both("START_REPLICATION")
        assert caught.value.phase == "start"
        assert wire.closed


# --- the stream


async def stream(dsn: str, on_notice: Callable[[Notice], None] | None = None) -> Wire:
    wire = await connected(dsn, on_notice)
    await wire.start_copy_both("START_REPLICATION")
    return wire


@pytest.mark.parametrize(
    ("last", "sqlstate", "fact"),
    [
        (failure("57P01", "terminating connection", "ProcessInterrupts"), "57P01", "severity"),
        (message(b"C", b"COPY 0\0"), None, "end_of_copy"),
        (message(b"c"), None, "end_of_copy"),
        (b"", None, "eof"),
        (b"d\0\0", None, "eof"),
    ],
)
async def test_all_that_came_before_the_end_is_handed_out_before_the_end(
    last: bytes, sqlstate: str | None, fact: str
) -> None:
    async with serving(streaming(copied(b"one"), copied(b"two"), last)) as dsn:
        wire = await stream(dsn)
        seen, error = await end_of(wire)
        assert seen == [b"one", b"two"]
        assert (error.phase, error.sqlstate) == ("streaming", sqlstate)
        assert error.facts[fact]
        with pytest.raises(SessionError) as again:
            wire.drain(1)
        assert again.value is error
        wire.finish()


async def test_what_libpq_cannot_follow_ends_the_stream_and_is_no_lost_connection() -> None:
    async with serving(streaming(copied(b"one"), b"d\0\0\0\x01")) as dsn:
        wire = await stream(dsn)
        seen, error = await end_of(wire)
        wire.finish()
    assert seen == [b"one"]
    assert error.facts["eof"] is False
    assert error.facts["protocol"] is True


async def test_a_drain_stops_at_its_limit_and_says_that_there_is_more() -> None:
    payloads = [b"%d" % number for number in range(7)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await asked(reader)
        writer.write(COPY_BOTH + b"".join(copied(one) for one in payloads))
        await reader.read()

    async with serving(serve) as dsn:
        wire = await stream(dsn)
        seen: list[bytes] = []
        more = []
        while len(seen) < 7:
            result = await drained(wire, limit=3)
            assert len(result.messages) <= 3
            assert result.size == sum(len(one) for one in result.messages)
            seen += [bytes(one) for one in result.messages]
            more.append(result.more)
        assert seen == payloads
        assert more == [True, True, False]
        wire.finish()


async def test_messages_that_came_with_the_answer_are_announced_without_the_socket() -> None:
    arrived = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await asked(reader)
        writer.write(COPY_BOTH + copied(b"one"))
        await reader.read()

    async with serving(serve) as dsn:
        wire = await stream(dsn)
        wire.watch(arrived.set)
        async with asyncio.timeout(5):
            await arrived.wait()
        assert [bytes(one) for one in wire.drain(9).messages] == [b"one"]
        assert wire.drain(9) == Drained([], 0, more=False)
        wire.finish()


async def test_a_notice_is_told_before_what_came_after_it() -> None:
    log: list[str] = []
    warning = report(b"N", {"S": "WARNING", "V": "WARNING", "C": "55000", "M": "skipped"})
    async with serving(streaming(copied(b"one"), warning, copied(b"two"))) as dsn:
        wire = await stream(dsn, lambda notice: log.append(notice.message))
        seen, _ = await end_of(wire)
        wire.finish()
    assert seen == [b"one", b"two"]
    assert log == ["skipped"]


async def watched_until_end(wire: Wire, woken: asyncio.Event) -> None:
    with suppress(SessionError):
        while True:
            await woken.wait()
            woken.clear()
            wire.drain(1)


async def test_a_connection_that_died_does_not_disturb_the_next_one_on_its_descriptor() -> None:
    loop = asyncio.get_running_loop()
    async with serving(streaming()) as dsn:
        dead = await stream(dsn)
        number = dead.socket
        woken = asyncio.Event()
        dead.watch(woken.set)
        await watched_until_end(dead, woken)
    pairs: list[tuple[socket.socket, socket.socket]] = []
    while number not in [one.fileno() for pair in pairs for one in pair]:
        pairs.append(socket.socketpair())
    ours, theirs = next(pair for pair in pairs if number in {pair[0].fileno(), pair[1].fileno()})
    if theirs.fileno() == number:
        ours, theirs = theirs, ours
    readable = asyncio.Event()
    loop.add_reader(number, readable.set)
    dead.unwatch()
    dead.finish()
    theirs.send(b"x")
    async with asyncio.timeout(5):
        await readable.wait()
    loop.remove_reader(number)
    for pair in pairs:
        for one in pair:
            one.close()


async def test_what_the_socket_does_not_take_goes_out_in_order_and_without_a_deadlock() -> None:
    chunk = 64 * 1024
    count = 320
    got: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await asked(reader)
        # Twenty megabytes, and none of ours is read before they are gone.
        writer.write(COPY_BOTH + copied(bytes(chunk)) * count)
        await writer.drain()
        got.extend([(await asked(reader))[0] for _ in range(count)])
        writer.write(copied(b"all"))
        await reader.read()

    async with serving(serve) as dsn, asyncio.timeout(30):
        wire = await stream(dsn)
        for number in range(count):
            wire.send_copy(bytes([number % 256]) * chunk)
        # Nobody reads the stream here: what is owed has to go out all the same.
        await until(lambda: len(got) == count, seconds=25)
        seen = 0
        while bytes((last := await drained(wire)).messages[-1]) != b"all":
            seen += len(last.messages)
        assert seen + len(last.messages) - 1 == count
        wire.finish()
    assert got == [number % 256 for number in range(count)]


def deaf(then: Callable[[asyncio.StreamWriter], None], over: asyncio.Event) -> Handler:
    """A server that opens COPY BOTH, reads nothing any more, and does ``then`` until ``over``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await asked(reader)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport has it
        writer.write(COPY_BOTH + copied(bytes(1000)) * 60)
        await asyncio.sleep(0.1)
        then(writer)
        await over.wait()

    return serve


async def test_a_hang_up_while_we_owe_and_nobody_watches_gives_the_descriptor_up() -> None:
    over = asyncio.Event()
    async with serving(deaf(lambda it: it.write_eof(), over)) as dsn, asyncio.timeout(5):
        wire = await stream(dsn)
        for _ in range(300):
            wire.send_copy(bytes(64 * 1024))
        await until(lambda: wire.socket == -1)
        seen, error = await end_of(wire)
        assert seen == [bytes(1000)] * 60
        assert error.facts["eof"] is True
        over.set()
        wire.finish()


async def refused_reply(wire: Wire, most: int) -> SessionError:
    for _ in range(most):
        try:
            wire.send_copy(b"r")
        except SessionError as error:
            return error
        await asyncio.sleep(0.05)
    raise AssertionError(f"{most} replies went out")


@pytest.mark.parametrize(
    "then", [lambda writer: writer.transport.abort(), lambda writer: writer.close()]
)
async def test_a_hang_up_while_nobody_watches_is_found_by_the_next_replies(
    then: Callable[[asyncio.StreamWriter], None],
) -> None:
    over, gone = asyncio.Event(), asyncio.Event()

    def hang_up(writer: asyncio.StreamWriter) -> None:
        then(writer)
        gone.set()

    async with serving(deaf(hang_up, over)) as dsn, asyncio.timeout(5):
        wire = await stream(dsn)
        await gone.wait()
        # Much is left unread; libpq by itself would read all of it before it told.
        error = await refused_reply(wire, most=3)
        assert error.phase == "standby_status"
        assert error.facts["eof"] is True
        over.set()
        wire.finish()


async def test_what_is_left_of_a_tls_record_behind_a_full_buffer_is_not_waited_for(
    tmp_path: Path,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(tmp_path))
    sent = copied(bytes(3_995)) + copied(bytes(13_995)) + copied(bytes(3_995))
    # libpq's buffer has 16 KiB at first. Of the second record it can take all but the end of the
    # second message, and the record is the last that comes.
    records = [sent[:2_000], sent[2_000 : 2_000 + 16_384]]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        await writer.start_tls(context)
        await greet(reader, writer)
        await asked(reader)
        writer.write(COPY_BOTH)
        for record in records:
            await asked(reader)
            writer.write(record)
        await reader.read()

    async with serving(serve) as dsn, asyncio.timeout(20):
        wire = await stream(dsn.replace("disable", "require"))
        wire.send_copy(b"more")
        await asyncio.sleep(0.1)
        assert wire.drain(9).messages == []
        wire.send_copy(b"more")
        seen = 0
        while seen < 2:
            seen += len((await drained(wire)).messages)
        wire.finish()


async def test_sending_on_a_stream_that_has_ended_is_an_error_of_its_own_phase() -> None:
    async with serving(streaming()) as dsn:
        wire = await stream(dsn)
        await end_of(wire)
        with pytest.raises(SessionError) as caught:
            wire.send_copy(b"r")
        assert caught.value.phase == "standby_status"
        wire.finish()


async def test_the_end_of_a_stream_drops_the_rest_and_reads_the_answer() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await asked(reader)
        writer.write(COPY_BOTH + copied(b"one"))
        assert await asked(reader) == b"status"
        assert await asked(reader) == b""
        writer.write(copied(b"late") + message(b"c") + message(b"C", b"COPY 0\0") + READY)
        await reader.read()

    async with serving(serve) as dsn, asyncio.timeout(5):
        wire = await stream(dsn)
        wire.send_copy(b"status")
        await wire.end_copy()
        await wire.end_copy()
        assert not wire.closed
        with pytest.raises(SessionError, match="connect anew"):
            await wire.query("SELECT", phase="lock")
        wire.finish()


async def test_an_end_of_stream_that_is_not_answered_can_be_given_up() -> None:
    async with serving(answering(COPY_BOTH)) as dsn:
        wire = await stream(dsn)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await wire.end_copy()
        assert wire.closed


async def test_an_end_of_stream_answered_by_hanging_up_is_a_lost_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        await asked(reader)
        writer.write(COPY_BOTH)
        await asked(reader)

    async with serving(serve) as dsn, asyncio.timeout(5):
        wire = await stream(dsn)
        with pytest.raises(SessionError) as caught:
            await wire.end_copy()
        wire.finish()
    assert caught.value.phase == "streaming"
    assert caught.value.facts["eof"] is True
