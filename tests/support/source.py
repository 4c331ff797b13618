"""What a keeper is to keep in a test: a published table and its slot."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import fsm
from fsm.postgres.lsn import parse_lsn
from fsm.postgres.session import PostgresSession, SessionSettings
from fsm.runtime.clock import RealClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.servers import Database


class Source:
    """A table ``t (id bigint PRIMARY KEY, x text)``, its publication, and the name of a slot."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.slot = database.unique("slot")
        self.publication = database.unique("publication")
        database.sql("CREATE TABLE t (id bigint PRIMARY KEY, x text)")
        database.sql(f"CREATE PUBLICATION {self.publication} FOR TABLE t")

    @property
    def dsn(self) -> str:
        return self.database.dsn

    def create_slot(self) -> None:
        self.database.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [self.slot])

    def keeper(self, **options: Any) -> fsm.Keeper:
        """A keeper of the slot; it creates it, unless ``options`` say something else."""
        given = {
            "dsn": self.dsn,
            "slot": self.slot,
            "publication": self.publication,
            "slot_policy": "create",
            **options,
        }
        return fsm.Keeper(given.pop("dsn"), **given)

    def session(self, **options: Any) -> PostgresSession:
        """One session, not yet open, as a keeper of the slot would have it."""
        given: dict[str, Any] = {
            "dsn": self.dsn,
            "slot": self.slot,
            "publication": self.publication,
            "lease": 10.0,
            "logical_messages": False,
            "lock_key": None,
            "lock_namespace": "slotkeeper",
            "application_name": None,
            **options,
        }
        return PostgresSession(SessionSettings.of(given.pop("dsn"), **given), RealClock())

    def insert(self, first: int, last: int) -> None:
        """One transaction with the rows ``first`` to ``last``."""
        self.database.sql(f"INSERT INTO t SELECT g, 'row' FROM generate_series({first}, {last}) g")

    def insert_each(self, first: int, last: int, *, at_once: int = 1) -> None:
        """Many transactions, of ``at_once`` rows each."""
        self.database.sql(
            f"DO $$ BEGIN FOR i IN {first}..{last} LOOP INSERT INTO t VALUES (i, 'row');"
            f" IF (i - {first} + 1) % {at_once} = 0 THEN COMMIT; END IF; END LOOP; END $$"
        )

    def reconnect(self) -> None:
        """Forget the connection of ``database.sql``: the server was restarted."""
        if self.database._connection is not None:
            self.database._connection.close()

    def slot_row(self) -> dict[str, Any]:
        """The slot as the server shows it; empty where there is none."""
        found = self.database.sql(
            "SELECT active, active_pid, confirmed_flush_lsn::text, restart_lsn::text"
            " FROM pg_replication_slots WHERE slot_name = %s",
            [self.slot],
        )
        names = ("active", "active_pid", "confirmed", "restart")
        return dict(zip(names, found[0], strict=True)) if found else {}

    def confirmed(self) -> int:
        """confirmed_flush_lsn of the slot."""
        return parse_lsn(self.slot_row()["confirmed"])

    def wal_position(self) -> int:
        """Where the server writes its log now."""
        return parse_lsn(self.database.sql("SELECT pg_current_wal_lsn()::text")[0][0])

    def is_free(self) -> bool:
        """Nothing of ours is left on the server: no active slot, no walsender, no lock."""
        [(walsenders, locks)] = self.database.sql(
            "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'"
            " AND datname = current_database()), (SELECT count(*) FROM pg_locks l"
            " JOIN pg_database d ON d.oid = l.database"
            " WHERE locktype = 'advisory' AND datname = current_database())"
        )
        return not self.slot_row().get("active") and (walsenders, locks) == (0, 0)

    def lock_pids(self, *, granted: bool) -> list[int]:
        """Who has, or waits for, an advisory lock of the database."""
        found = self.database.sql(
            "SELECT pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
            " WHERE locktype = 'advisory' AND datname = current_database() AND granted = %s",
            [granted],
        )
        return [pid for (pid,) in found]


def id_of(item: Any) -> int:
    """The id of a row that was inserted or updated."""
    return int(item.new["id"])


async def ids_of(transaction: fsm.Transaction) -> list[int]:
    """Read a transaction to its end: the ids of its rows."""
    return [id_of(item) async for item in transaction]


async def read(keeper: fsm.Keeper, count: int, *, seconds: float = 60.0) -> list[int]:
    """Read and acknowledge whole transactions with ``count`` rows of ``t`` or more: their ids."""
    ids: list[int] = []
    async with asyncio.timeout(seconds):
        while len(ids) < count:
            transaction = await anext(keeper)
            ids += await ids_of(transaction)
            await keeper.ack(transaction)
    return ids


async def items_of(keeper: fsm.Keeper, count: int, *, seconds: float = 30.0) -> list[Any]:
    """Read and acknowledge whole transactions until there are ``count`` items."""
    items: list[Any] = []
    async with asyncio.timeout(seconds):
        while len(items) < count:
            transaction = await anext(keeper)
            items += [item async for item in transaction]
            await keeper.ack(transaction)
    return items


async def reach(keeper: fsm.Keeper, *states: Any, seconds: float = 30.0) -> str:
    """Wait for a state, for a bounded time."""
    async with asyncio.timeout(seconds):
        return await keeper.wait_for(*states)


async def until(condition: Callable[[], object], *, seconds: float = 15.0) -> bool:
    """Poll, letting the event loop run; False where it has not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


async def confirmed_up_to(source: Source, position: int, *, seconds: float = 15.0) -> bool:
    """Wait until the slot's confirmed_flush_lsn has reached a position."""
    return await until(lambda: source.confirmed() >= position, seconds=seconds)


def eventually(condition: Callable[[], object], *, seconds: float = 15.0) -> bool:
    """Poll; False where it has not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def errors_of(keeper: fsm.Keeper) -> list[fsm.Record]:
    """The failures that the keeper's journal tells of."""
    return [record for record in keeper.journal if record.error_class is not None]
