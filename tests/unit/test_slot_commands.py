from __future__ import annotations

import re
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.pq.abc import PGresult

from fsm.errors import BadInput, Phase, SessionError
from fsm.postgres import slot
from fsm.postgres.wire import Wire

FIT = ["logical", "pgoutput", "shop", "t", "f", None, "reserved", "0/10", "0/20", None, "f"]


class Result:
    """A result as text, as libpq gives it."""

    def __init__(self, *found: list[str | None]) -> None:
        self._found = found
        self.ntuples = len(found)
        self.nfields = len(found[0]) if found else 0

    def get_value(self, row: int, column: int) -> bytes | None:
        value = self._found[row][column]
        return None if value is None else value.encode()


class FakeWire:
    """Answers queries by a list, and remembers them."""

    def __init__(self, *answers: Result | SessionError, server_version: int = 180000) -> None:
        self.server_version = server_version
        self.closed = False
        self.asked: list[tuple[str, str]] = []
        self._answers = list(answers)

    async def query(self, sql: str, *, phase: Phase) -> list[PGresult]:
        self.asked.append((phase, sql))
        answer = self._answers.pop(0) if self._answers else Result()
        if isinstance(answer, SessionError):
            raise answer
        return [cast("PGresult", Result()), cast("PGresult", answer)]

    @property
    def wire(self) -> Wire:
        return cast("Wire", self)


# --- names and quoting


@pytest.mark.parametrize("name", ["a", "orders", "orders_2", "_", "0", "a" * 63])
def test_a_name_that_the_server_takes_is_taken(name: str) -> None:
    assert slot.check_slot_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "Orders", "orders-2", "or ders", "a" * 64, "ordérs", "orders\n", "a;b", "a'b", "\u0661"],
)
def test_a_name_that_the_server_refuses_or_cuts_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(BadInput, match="1 to 63 lower-case letters, digits and underscores"):
        slot.check_slot_name(name)


@given(st.text())
def test_a_quoted_literal_reads_back_and_ends_where_it_should(value: str) -> None:
    quoted = slot.quote_literal(value)
    assert re.fullmatch(r"'(?:[^']|'')*'", quoted)
    assert quoted[1:-1].replace("''", "'") == value


@given(st.text())
def test_a_quoted_identifier_reads_back_and_ends_where_it_should(value: str) -> None:
    quoted = slot.quote_identifier(value)
    assert re.fullmatch(r'"(?:[^"]|"")*"', quoted)
    assert quoted[1:-1].replace('""', '"') == value


# --- START_REPLICATION


def test_the_command_names_slot_position_protocol_and_publications() -> None:
    command = slot.start_command("orders", 0x16_B374_D848, ["orders", "items"], messages=False)
    assert command == (
        'START_REPLICATION SLOT "orders" LOGICAL 16/B374D848 '
        "(proto_version '1', publication_names '\"orders\",\"items\"')"
    )


def test_messages_are_asked_for_where_the_host_wants_them() -> None:
    command = slot.start_command("orders", 0, ["orders"], messages=True)
    assert command.endswith(", messages 'true')")
    assert "LOGICAL 0/0" in command


def test_odd_names_of_publications_are_quoted_for_both_grammars() -> None:
    command = slot.start_command("orders", 0, ['My "pub", it\'s'], messages=False)
    assert 'publication_names \'"My ""pub"", it\'\'s"\'' in command


# --- looking at the slot


@pytest.mark.asyncio
async def test_a_slot_is_read_into_facts() -> None:
    wire = FakeWire(
        Result(["logical", "pgoutput", "shop", "t", "f", "712", "lost", "0/10", "1/20", "wal", "t"])
    )
    found = await slot.inspect(wire.wire, "orders")
    assert found is not None
    assert (found.slot_type, found.plugin, found.database) == ("logical", "pgoutput", "shop")
    assert (found.same_database, found.temporary, found.synced) == (True, False, True)
    assert (found.active_pid, found.wal_status, found.invalidation_reason) == (712, "lost", "wal")
    assert (found.restart_lsn, found.confirmed_flush_lsn) == (0x10, 0x1_0000_0020)


@pytest.mark.asyncio
async def test_what_the_server_leaves_out_is_none() -> None:
    row: list[str | None] = ["physical", None, None, "f", "t", None, None, None, None, None, "f"]
    found = await slot.inspect(FakeWire(Result(row)).wire, "orders")
    assert found is not None
    assert (found.same_database, found.temporary, found.synced) == (False, True, False)
    assert (found.plugin, found.database, found.active_pid, found.wal_status) == (None,) * 4
    assert (found.restart_lsn, found.confirmed_flush_lsn, found.invalidation_reason) == (None,) * 3


@pytest.mark.asyncio
async def test_a_slot_that_does_not_exist_is_none() -> None:
    assert await slot.inspect(FakeWire(Result()).wire, "orders") is None


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("server_version", "has", "lacks"),
    [
        (140010, [], ["invalidation_reason", "conflicting", "synced"]),
        (150000, [], ["invalidation_reason", "conflicting", "synced"]),
        (160000, ["conflicting"], ["invalidation_reason", "synced"]),
        (170000, ["invalidation_reason", "synced"], ["conflicting"]),
        (180001, ["invalidation_reason", "synced"], ["conflicting"]),
    ],
)
async def test_only_columns_that_the_version_has_are_asked_for(
    server_version: int, has: list[str], lacks: list[str]
) -> None:
    row: list[str | None] = [*FIT]
    wire = FakeWire(Result(row), server_version=server_version)
    await slot.inspect(wire.wire, "orders")
    ((phase, sql),) = wire.asked
    assert phase == "start"
    assert "WHERE slot_name = 'orders'" in sql
    assert all(word in sql for word in has)
    assert not any(word in sql for word in lacks)


@pytest.mark.asyncio
@pytest.mark.parametrize("level", ["replica", "minimal"])
async def test_a_server_that_cannot_decode_says_its_wal_level(level: str) -> None:
    with pytest.raises(SessionError) as raised:
        await slot.check_wal_level(FakeWire(Result([level])).wire, "orders")
    assert raised.value.facts == {"finding": "wal_level", "slot": "orders", "wal_level": level}
    assert raised.value.phase == "start"


@pytest.mark.asyncio
async def test_a_server_that_can_decode_passes() -> None:
    await slot.check_wal_level(FakeWire(Result(["logical"])).wire, "orders")


# --- creating


@pytest.mark.asyncio
async def test_a_slot_is_created_within_a_lock_timeout_that_is_taken_back() -> None:
    wire = FakeWire()
    await slot.create(wire.wire, "orders")
    assert [sql for _, sql in wire.asked] == [
        "SET lock_timeout = '25s'",
        'CREATE_REPLICATION_SLOT "orders" LOGICAL pgoutput NOEXPORT_SNAPSHOT',
        "SET lock_timeout = 0",
    ]
    assert {phase for phase, _ in wire.asked} == {"create_slot"}


@pytest.mark.asyncio
async def test_a_slot_that_another_created_meanwhile_is_as_good() -> None:
    wire = FakeWire(Result(), SessionError("exists", phase="create_slot", sqlstate="42710"))
    await slot.create(wire.wire, "orders")
    assert wire.asked[-1][1] == "SET lock_timeout = 0"


@pytest.mark.asyncio
@pytest.mark.parametrize("sqlstate", ["55P03", "53400", None])
async def test_another_error_of_creation_is_raised_and_names_the_slot(
    sqlstate: str | None,
) -> None:
    error = SessionError("no", phase="create_slot", sqlstate=sqlstate)
    with pytest.raises(SessionError) as raised:
        await slot.create(FakeWire(Result(), error).wire, "orders")
    assert raised.value is error
    assert error.facts["slot"] == "orders"


# --- publications and backends


@pytest.mark.asyncio
async def test_publications_that_exist_pass() -> None:
    wire = FakeWire(Result(["items"], ["orders"]))
    await slot.check_publications(wire.wire, ["orders", "items"])
    assert "IN ('orders', 'items')" in wire.asked[0][1]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("found", "missing"), [([["orders"]], "it's"), ([["it's"]], "orders"), ([], "orders")]
)
async def test_the_first_publication_that_is_missing_is_named(
    found: list[list[str | None]], missing: str
) -> None:
    wire = FakeWire(Result(*found))
    with pytest.raises(SessionError) as raised:
        await slot.check_publications(wire.wire, ["orders", "it's"])
    assert raised.value.facts == {"finding": "publication_missing", "publication": missing}
    assert raised.value.phase == "publication_check"
    assert "'it''s'" in wire.asked[0][1]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Result(["etl", "bob", "10.0.0.1"]), "pid 712, app 'etl', user 'bob'"),
        (Result(["", "bob", None]), "pid 712, user 'bob'"),
        (Result([None, None, None]), "pid 712"),
        (Result(), "pid 712"),
    ],
)
async def test_a_backend_is_named_as_far_as_grants_show_it(answer: Result, text: str) -> None:
    wire = FakeWire(answer)
    assert str(await slot.backend(wire.wire, 712)) == text
    assert "WHERE pid = 712" in wire.asked[0][1]


def test_rows_are_those_of_the_last_result() -> None:
    results: list[Any] = [Result(["1"], ["2"]), Result(["a", None], ["é", "b"])]
    assert slot.rows(results) == [("a", None), ("é", "b")]
