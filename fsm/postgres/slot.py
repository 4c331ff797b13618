"""A replication slot and its publications: look at, create, start. SQL and replication commands.

A walsender takes only simple queries, and replication commands in upper case; names and values are
quoted here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fsm.errors import BadInput, SessionError
from fsm.postgres import conninfo
from fsm.postgres.lsn import format_lsn, parse_lsn
from fsm.postgres.wire import rows as wire_rows
from fsm.runtime.session import Holder, SlotFacts

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from fsm.postgres.wire import Wire

_PG16: Final = 160000
_PG17: Final = 170000
_NAME: Final = re.compile(r"[a-z0-9_]{1,63}")
_ALREADY_EXISTS: Final = "42710"
_CREATE_LOCK_TIMEOUT: Final = 25
"""Seconds that creation waits for old transactions; statement_timeout does not bound it."""


def check_slot_name(name: str) -> str:
    """Refuse what cannot be a slot's name (ReplicationSlotValidateName in slot.c).

    A name of more than 63 bytes would not be refused by the server, but cut.

    Raises:
        BadInput: with the reason.
    """
    if not _NAME.fullmatch(name):
        shown = "this" if conninfo.may_hold_secret(name) else f"'{name}'"
        raise BadInput(
            f"{shown} cannot be the name of a slot: use 1 to 63 lower-case letters, digits and "
            "underscores"
        )
    return name


def quote_identifier(name: str) -> str:
    """Quote a name for SQL and replication commands."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(value: str) -> str:
    """Quote a value; standard_conforming_strings is on for a walsender's own grammar too."""
    return "'" + value.replace("'", "''") + "'"


def rows(results: Sequence[PGresult]) -> list[tuple[str | None, ...]]:
    """Give the rows of the last result, as text."""
    return wire_rows(results[-1])


async def inspect(wire: Wire, slot: str) -> SlotFacts | None:
    """Read the slot's row of pg_replication_slots (docs: view-pg-replication-slots.html)."""
    found = rows(await wire.query(_inspection(slot, wire.server_version), phase="start"))
    if not found:
        return None
    row = found[0]
    return SlotFacts(
        slot_type=row[0] or "",
        plugin=row[1],
        database=row[2],
        same_database=row[3] == "t",
        temporary=row[4] == "t",
        active_pid=int(row[5]) if row[5] else None,
        wal_status=row[6],
        restart_lsn=parse_lsn(row[7]) if row[7] else None,
        confirmed_flush_lsn=parse_lsn(row[8]) if row[8] else None,
        invalidation_reason=row[9],
        synced=row[10] == "t",
    )


def _inspection(slot: str, server_version: int) -> str:
    invalidation, synced = "NULL", "false"
    if server_version >= _PG17:
        invalidation, synced = "invalidation_reason", "synced AND pg_is_in_recovery()"
    elif server_version >= _PG16:
        invalidation = "CASE WHEN conflicting THEN 'conflicting' END"
    return (
        "SELECT slot_type, plugin, database, database IS NOT DISTINCT FROM current_database(), "
        "temporary, active_pid, wal_status, restart_lsn, confirmed_flush_lsn, "
        f"{invalidation}, {synced} "
        f"FROM pg_replication_slots WHERE slot_name = {quote_literal(slot)}"
    )


async def check_wal_level(wire: Wire, slot: str) -> None:
    """Raise where the server cannot decode logically, and so cannot have the slot."""
    level = rows(await wire.query("SELECT current_setting('wal_level')", phase="start"))[0][0]
    if level != "logical":
        raise SessionError(
            f"wal_level is {level}",
            phase="start",
            facts={"finding": "wal_level", "slot": slot, "wal_level": level},
        )


async def create(wire: Wire, slot: str) -> None:
    """Create the slot; one that another created meanwhile is as good.

    Raises:
        SessionError: phase ``create_slot``; 55P03 where an old transaction stood in the way.
    """
    await wire.query(f"SET lock_timeout = '{_CREATE_LOCK_TIMEOUT}s'", phase="create_slot")
    command = f"CREATE_REPLICATION_SLOT {quote_identifier(slot)} LOGICAL pgoutput NOEXPORT_SNAPSHOT"
    try:
        await wire.query(command, phase="create_slot")
    except SessionError as error:
        if error.sqlstate != _ALREADY_EXISTS:
            error.facts["slot"] = slot
            raise
    finally:
        if not wire.closed:
            await wire.query("SET lock_timeout = 0", phase="create_slot")


async def check_publications(wire: Wire, publications: Sequence[str]) -> None:
    """Raise where a publication is missing: START_REPLICATION would succeed without it."""
    wanted = ", ".join(quote_literal(name) for name in publications)
    sql = f"SELECT pubname FROM pg_publication WHERE pubname IN ({wanted})"
    found = {row[0] for row in rows(await wire.query(sql, phase="publication_check"))}
    missing = [name for name in publications if name not in found]
    if missing:
        raise SessionError(
            f"publication '{missing[0]}' does not exist",
            phase="publication_check",
            facts={"finding": "publication_missing", "publication": missing[0]},
        )


async def backend(wire: Wire, pid: int) -> Holder:
    """Name a backend as far as our grants show it (docs: monitoring-stats.html)."""
    sql = f"SELECT application_name, usename, client_addr FROM pg_stat_activity WHERE pid = {pid}"
    found = rows(await wire.query(sql, phase="start"))
    if not found:
        return Holder(pid)
    application_name, user, address = found[0]
    return Holder(pid, application_name or None, user, address)


def start_command(slot: str, start_lsn: int, publications: Sequence[str], *, messages: bool) -> str:
    """Write START_REPLICATION for protocol 1 (docs: protocol-logical-replication.html)."""
    names = ",".join(quote_identifier(name) for name in publications)
    options = ["proto_version '1'", f"publication_names {quote_literal(names)}"]
    if messages:
        options.append("messages 'true'")
    position = f"SLOT {quote_identifier(slot)} LOGICAL {format_lsn(start_lsn)}"
    return f"START_REPLICATION {position} ({', '.join(options)})"
