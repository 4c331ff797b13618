"""One connection attempt: libpq's PQconnectPoll on asyncio, and what is to be learnt of a failure.

libpq tells most of a failed attempt only in words, and in the language of the process. What a
SessionError of here carries besides is language-free:

==================== ===========================================================================
``conn_status``      libpq's last status before it turned bad: ``STARTED``, ``SSL_STARTUP``, ...;
                     ``BAD`` where it began so
``host_kind``        ``tcp`` or ``unix``; ``host``, ``hostaddr`` and ``port`` beside it
``errno``            number of the operating system's error, where there was one
``eof``              True: the other side hung up; False: it did not. Without SQLSTATE only
``server_spoke``     the other side sent an error message, even where it has no fields. Not under
                     TLS, where that cannot be seen
``timeout``          True where the time was up
``needs_password``   the server asked for a password and there was none; ``used_password``: one
                     was used; ``ssl_in_use``: TLS was up
``user``, ``database`` as libpq took them, unless a password may be in them
``target_session_attrs`` what the attempt asked of the server's role. Without SQLSTATE only
``message``          the server's primary message, else libpq's first line
==================== ===========================================================================
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq

from fsm.errors import Phase, SessionError
from fsm.postgres import conninfo, faults, readiness, verbosity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg.pq.abc import PGconn

    from fsm.postgres.conninfo import Attempt

# What PQconnectPoll goes through before a Postgres server has answered; all others are start-up.
_PHASES: dict[str, Phase] = {
    "BAD": "connect",
    "NEEDED": "connect",
    "STARTED": "connect",
    "MADE": "connect",
    "SSL_STARTUP": "ssl",
    "GSS_STARTUP": "ssl",
}


class Trying:
    """An attempt under way. The caller closes ``pgconn``, unless an error was raised.

    Args:
        attempt: what ``conninfo.attempts`` listed. Connecting begins at once.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._errno: int | None = None
        self._eof = False
        self._spoke = False
        self.pgconn = self._begin()
        self._status = _status(self.pgconn)

    async def until_up(self) -> None:
        """Wait until the connection is up.

        Raises:
            SessionError: it failed.
        """
        wanted = pq.PollingStatus.WRITING
        while self._status != "BAD" and wanted != pq.PollingStatus.FAILED:
            self._status = _status(self.pgconn)
            # After each poll the socket may be another one, so nothing of it is kept.
            fd = self.pgconn.socket
            await _ready(fd, wanted)
            self._look(fd)
            wanted = pq.PollingStatus(self.pgconn.connect_poll())
            if wanted == pq.PollingStatus.OK:
                verbosity.show_message_only(self.pgconn)
                return
        raise self._failed(self.pgconn.error_message.decode("utf-8", "replace"))

    def timed_out(self) -> SessionError:
        """Give up: the error to raise, with the fact ``timeout``."""
        error = self._failed(f"connection to {self._attempt} failed: timeout expired")
        error.facts["timeout"] = True
        return error

    def _begin(self) -> PGconn:
        pgconn = self._start()
        if pgconn.status != pq.ConnStatus.BAD:
            return pgconn
        self._errno = _errno_of_connect(self._attempt, pgconn)
        if self._errno is not None:
            return pgconn
        # Either a parameter is wrong, or the other side came up between the two looks at it.
        pgconn.finish()
        return self._start()

    def _start(self) -> PGconn:
        pgconn = pq.PGconn.connect_start(self._attempt.conninfo.encode())
        verbosity.show_sqlstate(pgconn)
        return pgconn

    def _look(self, fd: int) -> None:
        with _borrowed(fd) as sock:
            if self._status == "STARTED":
                self._look_at_connect(sock)
            else:
                self._look_at_answer(sock)

    def _look_at_connect(self, sock: socket.socket) -> None:
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            # The kernel tells it only once: libpq would take the connection for made.
            self._errno = number
            raise self._failed(f"connection to {self._attempt} failed: {os.strerror(number)}")

    def _look_at_answer(self, sock: socket.socket) -> None:
        try:
            first = sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._eof = False
        except OSError as error:
            self._eof = True
            self._errno = error.errno
        else:
            self._eof = not first
            # An ErrorResponse, or the one of protocol 2 that a server sends when it cannot fork.
            self._spoke = self._spoke if self._eof else first == b"E"

    def _failed(self, text: str) -> SessionError:
        read = faults.read_connect_text(text)
        pgconn, attempt = self.pgconn, self._attempt
        facts: dict[str, Any] = {
            "conn_status": self._status,
            "host_kind": "tcp" if attempt.hostaddr else "unix",
            "host": attempt.host,
            "hostaddr": attempt.hostaddr,
            "port": attempt.port,
            "message": read.primary,
            "needs_password": pgconn.needs_password,
            "used_password": pgconn.used_password,
            "ssl_in_use": pgconn.ssl_in_use,
            **_names(pgconn),
        }
        if read.sqlstate is None:
            facts |= self._silent_facts()
        pgconn.finish()
        error = SessionError(
            read.line,
            phase=_PHASES.get(self._status, "startup"),
            sqlstate=read.sqlstate,
            routine=read.routine,
            facts=facts,
        )
        error.__cause__ = psycopg.OperationalError(read.line)
        return error

    def _silent_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"eof": self._eof}
        if self._errno is not None:
            facts["errno"] = self._errno
        if not self.pgconn.ssl_in_use:
            facts["server_spoke"] = self._spoke
        wanted = self._attempt.params.get("target_session_attrs", "any")
        if wanted != "any":
            facts["target_session_attrs"] = wanted
        return facts


def _names(pgconn: PGconn) -> dict[str, str]:
    """Give role and database, without a name into which a password may have slipped."""
    named = {"user": pgconn.user.decode(), "database": pgconn.db.decode()}
    return {key: name for key, name in named.items() if name and not conninfo.may_hold_secret(name)}


async def _ready(fd: int, wanted: pq.PollingStatus) -> None:
    events = readiness.READ if wanted == pq.PollingStatus.READING else readiness.WRITE
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    try:
        readiness.announce(fd, events, waiter)
        await waiter
    finally:
        readiness.forget(loop, fd)


def _status(pgconn: PGconn) -> str:
    number = pgconn.status
    try:
        return pq.ConnStatus(number).name
    except ValueError:
        # A libpq newer than psycopg has added it. What is added comes after the network.
        return str(number)


def _errno_of_connect(attempt: Attempt, pgconn: PGconn) -> int | None:
    """Connect as libpq did when it failed at once; None where that does not fail at once."""
    try:
        family, address = _address(attempt, pgconn)
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(0)
            number = sock.connect_ex(address)
    except OSError as error:
        return error.errno
    return None if number in {0, errno.EINPROGRESS, errno.EAGAIN} else number


def _address(attempt: Attempt, pgconn: PGconn) -> tuple[int, Any]:
    if attempt.hostaddr:
        known = socket.getaddrinfo(
            attempt.hostaddr, attempt.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        return known[0][0], known[0][4]
    path = f"{attempt.host or pgconn.host.decode()}/.s.PGSQL.{attempt.port}"
    # libpq writes Linux's abstract namespace with '@', the kernel with NUL.
    return socket.AF_UNIX, f"\0{path[1:]}" if path.startswith("@") else path


@contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()
