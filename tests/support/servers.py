"""Throw-away servers for tests, and a fresh database for each test."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString, Self

import psycopg
from psycopg import sql

from fsm import embedded
from fsm.embedded import Postgres
from tests.support import binaries

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HELPER = "slotkeeper-tests"
"""application_name of the connections that this module opens: the leak check passes them over."""

GRACE = 3.0
"""Seconds that a backend has, after its client is gone, until it counts as left over."""

_NAMES = itertools.count(1)


def run_sql(
    server: Postgres,
    query: str,
    params: Sequence[Any] | Mapping[str, Any] | None = None,
    dbname: str = "postgres",
) -> list[tuple[Any, ...]]:
    """One statement as superuser on a connection of its own: its rows, [] where it has none."""
    with psycopg.connect(
        server.dsn(dbname, application_name=HELPER), autocommit=True
    ) as connection:
        return _rows(connection, query, params)


class LeftOverError(AssertionError):
    """A test left a backend or an active slot behind."""


class Servers:
    """Makes servers of any version, each from a copy of one template. One per worker."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="slotkeeper-tests-"))
        self._shared: dict[int, Postgres] = {}

    @contextmanager
    def make(self, version: int, settings: Mapping[str, str] | None = None) -> Iterator[Postgres]:
        """A new server, started; closed and removed at the end."""
        server, folder = self._new(version, settings)
        try:
            with server:
                yield server
        finally:
            shutil.rmtree(folder)

    def shared(self, version: int) -> Postgres:
        """The one server of this version that this worker's tests share, running."""
        if version not in self._shared:
            self._shared[version], _ = self._new(version, None)
        server = self._shared[version]
        if not server.running:
            server.start()
        return server

    def close(self) -> None:
        for server in self._shared.values():
            server.close()
        shutil.rmtree(self._folder)

    def _new(self, version: int, settings: Mapping[str, str] | None) -> tuple[Postgres, Path]:
        bin_dir = binaries.bin_dir(version)
        folder = Path(tempfile.mkdtemp(dir=self._folder, prefix=f"{version}-"))
        template = self._template(version, bin_dir)
        # cp takes a fifth of the time of shutil.copytree.
        subprocess.run(["cp", "-Rp", str(template), str(folder / "data")], check=True)
        return Postgres(bin_dir, folder, settings), folder

    def _template(self, version: int, bin_dir: Path) -> Path:
        template = self._folder / f"template-{version}"
        if not template.exists():
            embedded.make_cluster(bin_dir, template)
        return template


class Database:
    """A fresh database on a server, with names that no other test uses.

    ``close`` ends what is left on it, drops its slots, the roles named by ``unique``, and itself.
    """

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self.name = f"t{next(_NAMES)}_{secrets.token_hex(3)}"
        self._names: list[str] = []
        self._leftovers_allowed = False
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._admin("CREATE DATABASE {}", self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dsn(self) -> str:
        """Connects to it as superuser."""
        return self.server.dsn(self.name)

    def sql(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """One statement as superuser, committed at once: its rows, [] where it has none."""
        if self._connection is None or self._connection.broken or self._connection.closed:
            self._connection = psycopg.connect(
                self.server.dsn(self.name, application_name=HELPER), autocommit=True
            )
        return _rows(self._connection, query, params)

    def unique(self, prefix: str) -> str:
        """A name for a slot, a publication or a role that nobody else has on this server."""
        name = f"{prefix}_{self.name}_{len(self._names)}"
        self._names.append(name)
        return name

    def allow_leftovers(self) -> None:
        """This test may leave backends and active slots: they are ended without a word."""
        self._leftovers_allowed = True

    def close(self) -> None:
        """Drop everything.

        Raises:
            LeftOverError: a backend or an active slot was left, and that was not allowed.
        """
        if self._connection is not None:
            self._connection.close()
        if not self.server.running:
            return
        left = self._wait_until_left()
        self._end_backends()
        self._drop_slots()
        self._admin("DROP DATABASE {} WITH (FORCE)", self.name)
        for name in self._names:
            self._admin("DROP ROLE IF EXISTS {}", name)
        if left and not self._leftovers_allowed:
            raise LeftOverError("The test left on its server: " + "; ".join(left.values()))

    def _wait_until_left(self) -> dict[int, str]:
        """Backends and active slots of others that are still there after the grace, by pid."""
        deadline = time.monotonic() + (0 if self._leftovers_allowed else GRACE)
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return left

    def _left(self) -> dict[int, str]:
        backends = run_sql(
            self.server,
            "SELECT pid, format('%%s, pid %%s, application_name %%L', backend_type, pid,"
            " application_name) FROM pg_stat_activity WHERE datname = %s"
            " AND backend_type IN ('client backend', 'walsender') AND application_name <> %s",
            [self.name, HELPER],
        )
        slots = run_sql(
            self.server,
            "SELECT active_pid, format('slot %%L, active for pid %%s', slot_name, active_pid)"
            " FROM pg_replication_slots WHERE active_pid IS NOT NULL"
            " AND (database = %s OR slot_name = ANY(%s))",
            [self.name, self._names],
        )
        left: dict[int, str] = {}
        for pid, text in backends + slots:
            left[pid] = f"{left[pid]}, {text}" if pid in left else text
        return left

    def _end_backends(self) -> None:
        deadline = time.monotonic() + 10 * GRACE
        while left := self._left():
            for pid in left:
                # One that a test has stopped would not see that it is to end.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                run_sql(self.server, "SELECT pg_terminate_backend(%s)", [pid])
            if time.monotonic() > deadline:
                raise LeftOverError("These do not end: " + "; ".join(left.values()))
            time.sleep(0.01)

    def _drop_slots(self) -> None:
        # Logical slots of a database go with it anyway; physical ones belong to no database.
        run_sql(
            self.server,
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE database = %s OR slot_name = ANY(%s)",
            [self.name, self._names],
        )

    def _admin(self, query: LiteralString, name: str) -> None:
        statement = sql.SQL(query).format(sql.Identifier(name))
        run_sql(self.server, statement.as_string())


def _rows(
    connection: psycopg.Connection[tuple[Any, ...]],
    query: str,
    params: Sequence[Any] | Mapping[str, Any] | None,
) -> list[tuple[Any, ...]]:
    # As bytes: tests put names of their own into statements, and psycopg's str must be a literal.
    cursor = connection.execute(query.encode(), params)
    return cursor.fetchall() if cursor.description is not None else []
