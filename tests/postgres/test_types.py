"""What the keeper hands over, compared with what an ordinary SELECT gives for the same rows."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

import fsm
from fsm.postgres.changes import Message, Truncate
from tests.support.source import Source, items_of, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.servers import Database

# As psycopg reads them.
PYTHON_TYPES = {
    "int2": ["-32768", "0", "32767"],
    "int4": ["-2147483648", "7", "2147483647"],
    "int8": ["-9223372036854775808", "9223372036854775807"],
    "oid": ["0", "4294967295"],
    "numeric": [
        "0",
        "-0.000",
        "1.50",
        "1e-30",
        "12345678901234567890.123456789012345678901234567890",
        "1e300",
        "'NaN'",
        "'Infinity'",
        "'-Infinity'",
    ],
    "numeric(12,2)": ["1", "-9999999999.99"],
    "text": [
        "''",
        "'plain'",
        r"E'tab\tline\nback\\slash \'quote\''",
        "'zażółć 🐘'",
        "repeat('x', 20000)",
    ],
    "varchar(10)": ["''", "'ab  '"],
    "bpchar": ["'ab  '"],
    "char(5)": ["'ab'", "''"],
    "bool": ["true", "false"],
    "bytea": [r"'\x'", r"'\x00ff5c27'", "decode(repeat('00ff', 4000), 'hex')"],
    "float4": ["0.1", "'-0'", "3.4028235e38", "1e-45", "'NaN'", "'Infinity'", "'-Infinity'"],
    "float8": [
        "0.1",
        "'-0'",
        "1.7976931348623157e308",
        "5e-324",
        "'NaN'",
        "'Infinity'",
        "'-Infinity'",
    ],
    "date": ["'0001-01-01'", "'2024-02-29'", "'9999-12-31'"],
    "time": ["'00:00'", "'23:59:59.999999'", "'12:30:00.5'"],
    "timestamp": ["'0001-01-01 00:00'", "'2024-02-29 23:59:59.999999'", "'9999-12-31 12:00:00.1'"],
    "timestamptz": [
        "'2024-02-29 12:00:00.000001+02'",
        "'1900-01-01 00:00+00'",
        "'9999-12-31 00:00+00'",
    ],
    "timetz": ["'12:30:00.25+02'", "'23:59:59-07:30'"],
    "uuid": ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'00000000-0000-0000-0000-000000000000'"],
    "json": ["""'{"a": [1, 2.5, null, true, "ü"], "b": {}}'""", "'[]'", "'\"text\"'", "'null'"],
    "inet": ["'192.168.0.1/24'", "'192.168.0.1'", "'::1'", "'2001:db8::1/64'"],
    "cidr": ["'10.0.0.0/8'", "'2001:db8::/32'"],
    "int4[]": ["'{}'", "'{1,NULL,-3}'", "'{{1,2},{3,4}}'"],
    "text[]": [
        """'{"a,b",NULL,"NULL","","q\\"uote","back\\\\slash","{}"," space "}'""",
        "'{plain}'",
    ],
    "numeric[]": ["'{1.50,NaN,NULL}'"],
    "bool[]": ["'{t,f}'"],
    "bytea[]": [r"ARRAY['\x00ff'::bytea, '']"],
    "timestamptz[]": ["'{2024-02-29 12:00:00.5+02,NULL}'"],
    "uuid[]": ["'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'"],
    "int4range": ["'[1,5)'", "'empty'", "'(,)'", "'[7,)'"],
    "numrange": ["'(1.50,2.50]'", "'(,0]'"],
    "daterange": ["'[2024-01-01,2024-02-01)'"],
    "tsrange": ["'[2024-01-01 00:00,2024-01-02 12:30:00.5]'"],
    "tstzrange": ["'[2024-01-01 00:00+00,)'"],
    "int4multirange": ["'{}'", "'{[1,3),[5,7)}'"],
    "int8range[]": ["""'{"[1,2)",empty}'"""],
    "jsonb": ["""'{"b": 1, "a": [1, 2.5, null, "ü"]}'""", "'12345678901234567890'", "'null'"],
}

# As their text: what Python has no value for, and what stays text.
TEXT_TYPES = {
    "date": ["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'10000-01-01'", "'5874897-12-31'"],
    "timestamp": ["'infinity'", "'-infinity'", "'0044-03-15 12:00:00.5 BC'", "'10000-01-01 00:00'"],
    "timestamptz": [
        "'infinity'",
        "'-infinity'",
        "'0044-03-15 12:00+00 BC'",
        "'294276-12-31 00:00+00'",
    ],
    "time": ["'24:00:00'"],
    "timetz": ["'24:00:00+02'"],
    "int4[]": ["'[2:3]={5,6}'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "money": ["'12.34'"],
    "bit(3)": ["B'101'"],
    "varbit": ["B'10101'"],
    "point": ["'(0.1,2)'"],
    "tsvector": ["'a fat cat'"],
    "name": ["'a_name'"],
    '"char"': ["'c'"],
    "xid": ["'12'"],
    "pg_lsn": ["'16/B374D848'"],
    "box": ["'(2,3),(0,1)'"],
}

INTERVALS = [
    "'1 year 2 mons -3 days 04:05:06.7'",
    "'0'",
    "'-1 day'",
    "'-1 year 1 mon'",
    "'1 day -02:00:00'",
    "'-00:00:00.000001'",
    "'1000 years 100000 hours'",
]


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with closing(
        psycopg.connect(
            database.server.dsn(database.name, options="-c TimeZone=UTC -c IntervalStyle=postgres"),
            autocommit=True,
        )
    ) as made:
        yield made


def run(connection: psycopg.Connection[tuple[Any, ...]], sql: str) -> list[tuple[Any, ...]]:
    cursor = connection.execute(sql.encode())
    return cursor.fetchall() if cursor.description else []


async def handed_over(database: Database, type_name: str, expressions: Sequence[str]) -> list[Any]:
    """Insert the values, and NULL, into a table ``v``, and give what the keeper makes of them."""
    slot, publication = database.unique("slot"), database.unique("publication")
    database.sql(f"CREATE TABLE v (id int PRIMARY KEY, value {type_name})")
    database.sql(f"CREATE PUBLICATION {publication} FOR TABLE v")
    async with fsm.Keeper(
        database.dsn, slot=slot, publication=publication, slot_policy="create"
    ) as keeper:
        await keeper.wait_for("Streaming")
        for number, expression in enumerate((*expressions, "NULL")):
            database.sql(f"INSERT INTO v VALUES ({number}, {expression})".replace("%", "%%"))
        changes = await items_of(keeper, len(expressions) + 1)
    assert [change.new["id"] for change in changes] == list(range(len(expressions) + 1))
    return [change.new["value"] for change in changes]


def exact(value: Any) -> Any:
    """Distinguish what == does not: NaN, -0.0, the scale of a Decimal, True and 1."""
    if isinstance(value, list):
        return [exact(item) for item in value]
    if isinstance(value, Multirange):
        return ["multirange", *(exact(item) for item in value)]
    if isinstance(value, Range):
        return "range", exact(value.lower), exact(value.upper), value.bounds
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)
    return type(value).__name__, repr(value)


@pytest.mark.parametrize("type_name", PYTHON_TYPES)
@pytest.mark.asyncio
async def test_a_value_is_what_an_ordinary_select_gives(
    database: Database, connection: psycopg.Connection[tuple[Any, ...]], type_name: str
) -> None:
    values = await handed_over(database, type_name, PYTHON_TYPES[type_name])
    selected = [value for (value,) in run(connection, "SELECT value FROM v ORDER BY id")]
    assert list(map(exact, values)) == list(map(exact, selected))
    assert values[-1] is None


@pytest.mark.parametrize("type_name", TEXT_TYPES)
@pytest.mark.asyncio
async def test_what_python_has_no_value_for_is_its_text(
    database: Database, connection: psycopg.Connection[tuple[Any, ...]], type_name: str
) -> None:
    values = await handed_over(database, type_name, TEXT_TYPES[type_name])
    selected = [
        value for (value,) in run(connection, "SELECT format('%s', value) FROM v ORDER BY id")
    ]
    assert values == [*selected[:-1], None]
    assert all(isinstance(value, str) for value in values[:-1])


@pytest.mark.asyncio
async def test_an_interval_keeps_months_days_and_the_clock_apart(
    database: Database, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    values = await handed_over(database, "interval", INTERVALS)
    connection.execute("SET IntervalStyle = 'iso_8601'")
    selected = [text for (text,) in run(connection, "SELECT value::text FROM v ORDER BY id")]
    assert [value and value.isoformat() for value in values] == selected


@pytest.mark.asyncio
async def test_json_beyond_pythons_floats_is_not_rounded_to_infinity(database: Database) -> None:
    values = await handed_over(database, "jsonb", ["'[1e400, 1]'"])
    assert values[0] == ["1" + "0" * 400, 1] or values[0] == [10**400, 1]


@pytest.mark.asyncio
async def test_enums_and_composites_are_text_and_domains_are_as_their_base_type(
    source: Source,
) -> None:
    sql = source.database.sql
    sql("CREATE TYPE mood AS ENUM ('sad', 'happy day')")
    sql("CREATE TYPE pair AS (a int, b text)")
    sql("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
    sql("CREATE DOMAIN small AS positive CHECK (VALUE < 100)")
    sql("CREATE TABLE custom (id int PRIMARY KEY, m mood, p pair, d positive, s small, ms mood[])")
    sql(f"ALTER PUBLICATION {source.publication} ADD TABLE custom")
    async with source.keeper() as keeper:
        await keeper.wait_for("Streaming")
        sql("INSERT INTO custom VALUES (1, 'happy day', (1, 'a,b'), 5, 6, '{sad}')")
        [change] = await items_of(keeper, 1)
    assert change.new.as_dict() == {
        "id": 1,
        "m": "happy day",
        "p": '(1,"a,b")',
        "d": 5,
        "s": 6,
        "ms": "{sad}",
    }
    names = {column.name: column.type_name for column in change.relation.columns}
    assert names["m"] == "public.mood"
    assert names["d"] == "int4"


@pytest.mark.asyncio
async def test_an_unchanged_toasted_value_is_a_marker_and_never_none(source: Source) -> None:
    sql = source.database.sql
    sql("ALTER TABLE t ALTER x SET STORAGE EXTERNAL, ADD n int")
    async with source.keeper() as keeper:
        await keeper.wait_for("Streaming")
        sql("INSERT INTO t VALUES (1, repeat('long', 5000), 0)")
        sql("UPDATE t SET n = 1")
        sql("UPDATE t SET x = NULL")
        inserted, updated, emptied = await items_of(keeper, 3)
    assert inserted.new["x"] == "long" * 5000
    assert updated.new["x"] is fsm.UNCHANGED
    assert updated.new["n"] == 1
    assert updated.as_dict()["unchanged"] == ["x"]
    assert emptied.new["x"] is None


@pytest.mark.asyncio
async def test_full_identity_brings_the_old_value_of_an_unchanged_toasted_column(
    source: Source,
) -> None:
    sql = source.database.sql
    sql("ALTER TABLE t ALTER x SET STORAGE EXTERNAL, ADD n int")
    sql("ALTER TABLE t REPLICA IDENTITY FULL")
    async with source.keeper() as keeper:
        await keeper.wait_for("Streaming")
        sql("INSERT INTO t VALUES (1, repeat('long', 5000), 0)")
        sql("UPDATE t SET n = 1")
        _, updated = await items_of(keeper, 2)
    assert updated.old["x"] == "long" * 5000
    assert not updated.old_is_key


class TestReplicaIdentity:
    async def changes(self, source: Source, count: int, *statements: str) -> list[Any]:
        async with source.keeper() as keeper:
            await keeper.wait_for("Streaming")
            for statement in statements:
                source.database.sql(statement)
            return await items_of(keeper, count)

    @pytest.mark.asyncio
    async def test_default_an_update_has_no_old_row_while_the_key_stays(
        self, source: Source
    ) -> None:
        [_, change] = await self.changes(
            source, 2, "INSERT INTO t VALUES (1, 'a')", "UPDATE t SET x = 'b'"
        )
        assert (change.kind, change.old, change.key) == ("update", None, {"id": 1})
        assert change.new == {"id": 1, "x": "b"}

    @pytest.mark.asyncio
    async def test_default_an_update_of_the_key_brings_the_old_key(self, source: Source) -> None:
        [_, change] = await self.changes(
            source, 2, "INSERT INTO t VALUES (1, 'a')", "UPDATE t SET id = 2"
        )
        assert change.old == {"id": 1}
        assert (change.old_is_key, change.key) == (True, {"id": 1})
        assert change.new == {"id": 2, "x": "a"}

    @pytest.mark.asyncio
    async def test_default_a_delete_brings_the_key(self, source: Source) -> None:
        [_, change] = await self.changes(
            source, 2, "INSERT INTO t VALUES (1, 'a')", "DELETE FROM t"
        )
        assert (change.kind, change.new) == ("delete", None)
        assert (change.old, change.old_is_key) == ({"id": 1}, True)

    @pytest.mark.asyncio
    async def test_full_updates_and_deletes_bring_the_whole_old_row(self, source: Source) -> None:
        source.database.sql("ALTER TABLE t REPLICA IDENTITY FULL")
        [_, update, delete] = await self.changes(
            source,
            3,
            "INSERT INTO t VALUES (1, NULL)",
            "UPDATE t SET x = 'b', id = 2",
            "DELETE FROM t",
        )
        assert (update.old, update.new) == ({"id": 1, "x": None}, {"id": 2, "x": "b"})
        assert (delete.old, delete.old_is_key) == ({"id": 2, "x": "b"}, False)

    @pytest.mark.asyncio
    async def test_index_the_columns_of_the_index_are_the_key(self, source: Source) -> None:
        sql = source.database.sql
        sql("ALTER TABLE t ALTER x SET NOT NULL")
        sql("CREATE UNIQUE INDEX by_x ON t (x)")
        sql("ALTER TABLE t REPLICA IDENTITY USING INDEX by_x")
        [_, update, delete] = await self.changes(
            source, 3, "INSERT INTO t VALUES (1, 'a')", "UPDATE t SET x = 'b'", "DELETE FROM t"
        )
        assert update.relation.replica_identity == "i"
        assert (update.old, update.key) == ({"x": "a"}, {"x": "a"})
        assert delete.key == {"x": "b"}

    @pytest.mark.asyncio
    async def test_nothing_inserts_are_streamed_and_have_no_key(self, source: Source) -> None:
        sql = source.database.sql
        sql("ALTER TABLE t REPLICA IDENTITY NOTHING")
        sql(f"ALTER PUBLICATION {source.publication} SET (publish = 'insert')")
        changes = await self.changes(
            source,
            2,
            "INSERT INTO t VALUES (1, 'a')",
            "UPDATE t SET x = 'b'",
            "DELETE FROM t",
            "INSERT INTO t VALUES (2, 'c')",
        )
        assert [(change.kind, change.key) for change in changes] == [("insert", {})] * 2
        assert changes[1].new == {"id": 2, "x": "c"}


@pytest.mark.asyncio
async def test_a_truncate_names_its_tables_and_options(source: Source) -> None:
    sql = source.database.sql
    sql("CREATE TABLE child (id int PRIMARY KEY, t bigint REFERENCES t)")
    sql("CREATE TABLE other (id serial PRIMARY KEY)")
    sql(f"ALTER PUBLICATION {source.publication} ADD TABLE child, other")
    async with source.keeper() as keeper:
        await keeper.wait_for("Streaming")
        sql("TRUNCATE child")
        sql("TRUNCATE t CASCADE")
        sql("TRUNCATE other, child RESTART IDENTITY")
        truncates = await items_of(keeper, 3)
    assert all(isinstance(truncate, Truncate) for truncate in truncates)
    seen = [
        (
            sorted(relation.table for relation in truncate.relations),
            truncate.cascade,
            truncate.restart_identity,
        )
        for truncate in truncates
    ]
    assert seen == [
        (["public.child"], False, False),
        (["public.child", "public.t"], True, False),
        (["public.child", "public.other"], False, True),
    ]


@pytest.mark.asyncio
async def test_logical_messages_come_in_their_place(source: Source) -> None:
    sql = source.database.sql
    async with source.keeper(logical_messages=True) as keeper:
        await keeper.wait_for("Streaming")
        with psycopg.connect(source.dsn) as connection:
            connection.execute("INSERT INTO t VALUES (1, 'a')")
            connection.execute("SELECT pg_logical_emit_message(true, 'within', 'ä'::text)")
            connection.execute("INSERT INTO t VALUES (2, 'b')")
        sql(r"SELECT pg_logical_emit_message(false, 'between', '\x00ff'::bytea)")
        sql("INSERT INTO t VALUES (3, 'c')")
        transactions: list[tuple[fsm.Transaction, list[Any]]] = []
        async for transaction in keeper:
            items = [item async for item in transaction]
            transactions.append((transaction, items))
            await keeper.ack(transaction)
            if len(transactions) == 3:
                break
    [(first, within), (second, between), (_, last)] = transactions
    assert [type(item) is Message for item in within] == [False, True, False]
    assert (within[1].prefix, within[1].content, within[1].transactional) == (
        "within",
        "ä".encode(),
        True,
    )
    assert (second.xid, second.commit_time, len(between)) == (0, None, 1)
    assert (between[0].prefix, between[0].content, between[0].transactional) == (
        "between",
        b"\x00\xff",
        False,
    )
    assert first.xid != 0
    assert last[0].new["id"] == 3


@pytest.mark.asyncio
async def test_a_message_outside_of_transactions_does_not_hide_the_commit_that_follows(
    source: Source,
) -> None:
    """The commit's record stands where the message's ends: both have the same LSN."""
    async with source.keeper(logical_messages=True) as keeper:
        await keeper.wait_for("Streaming")
        with psycopg.connect(source.dsn) as connection:
            connection.execute("INSERT INTO t VALUES (1, 'a')")
            connection.execute("SELECT pg_logical_emit_message(false, 'first', '')")
        [message, change] = await items_of(keeper, 2)
    assert (message.prefix, change.new["id"]) == ("first", 1)


@pytest.mark.asyncio
async def test_confirming_a_message_does_not_confirm_the_commit_that_follows(
    source: Source,
) -> None:
    async with source.keeper(logical_messages=True) as keeper:
        await keeper.wait_for("Streaming")
        with psycopg.connect(source.dsn) as connection:
            connection.execute("INSERT INTO t VALUES (1, 'a')")
            connection.execute("SELECT pg_logical_emit_message(false, 'first', '')")
        [message] = await items_of(keeper, 1)
        assert message.prefix == "first"
    async with source.keeper(logical_messages=True) as keeper:
        [change] = await items_of(keeper, 1)
    assert change.new["id"] == 1


@pytest.mark.asyncio
async def test_an_acknowledged_message_does_not_come_again(source: Source) -> None:
    async with source.keeper(logical_messages=True) as keeper:
        await keeper.wait_for("Streaming")
        for number in range(3):
            source.database.sql(f"SELECT pg_logical_emit_message(false, '{number}', '')")
        assert [item.prefix for item in await items_of(keeper, 2)] == ["0", "1"]
    async with source.keeper(logical_messages=True) as keeper:
        assert [item.prefix for item in await items_of(keeper, 1)] == ["2"]


@pytest.mark.asyncio
async def test_messages_are_left_out_where_they_are_not_asked_for(source: Source) -> None:
    async with source.keeper() as keeper:
        await keeper.wait_for("Streaming")
        source.database.sql("SELECT pg_logical_emit_message(true, 'unwanted', '')")
        source.insert(1, 1)
        assert await read(keeper, 1) == [1]


@pytest.mark.asyncio
async def test_a_transaction_from_another_server_names_its_origin(source: Source) -> None:
    origin = source.database.unique("origin")
    source.database.sql("SELECT pg_replication_origin_create(%s)", [origin])
    try:
        async with source.keeper() as keeper:
            await keeper.wait_for("Streaming")
            with psycopg.connect(source.dsn) as connection:
                connection.execute("SELECT pg_replication_origin_session_setup(%s)", [origin])
                connection.commit()
                connection.execute("SELECT pg_replication_origin_xact_setup('0/ABC', now())")
                connection.execute("INSERT INTO t VALUES (1, 'a')")
            source.insert(2, 2)
            origins = []
            async for transaction in keeper:
                items = [item async for item in transaction]
                assert len(items) == 1
                origins.append(transaction.origin)
                await keeper.ack(transaction)
                if len(origins) == 2:
                    break
        assert origins == [origin, None]
    finally:
        source.database.sql("SELECT pg_replication_origin_drop(%s)", [origin])


@pytest.mark.asyncio
async def test_a_table_that_changes_in_mid_stream_is_decoded_as_it_was_at_each_change(
    source: Source,
) -> None:
    sql = source.database.sql
    async with source.keeper() as keeper:
        await keeper.wait_for("Streaming")
        with psycopg.connect(source.dsn) as connection:
            connection.execute("INSERT INTO t VALUES (1, 'a')")
            connection.execute("ALTER TABLE t ADD COLUMN n numeric DEFAULT 1.5")
            connection.execute("INSERT INTO t VALUES (2, 'b', 2.5)")
        sql("ALTER TABLE t DROP COLUMN x")
        sql("ALTER TABLE t RENAME COLUMN n TO m")
        sql("INSERT INTO t VALUES (3, 3.5)")
        sql("ALTER TABLE t ALTER m TYPE text")
        sql("ALTER TABLE t RENAME TO u")
        sql("INSERT INTO u VALUES (4, 'four')")
        changes = [item for item in await items_of(keeper, 4) if item.kind == "insert"]
    assert [(change.table, change.new.as_dict()) for change in changes] == [
        ("public.t", {"id": 1, "x": "a"}),
        ("public.t", {"id": 2, "x": "b", "n": changes[1].new["n"]}),
        ("public.t", {"id": 3, "m": changes[2].new["m"]}),
        ("public.u", {"id": 4, "m": "four"}),
    ]
    assert [str(changes[1].new["n"]), str(changes[2].new["m"])] == ["2.5", "3.5"]


@pytest.mark.asyncio
async def test_names_that_need_quotes_are_kept(database: Database) -> None:
    slot = database.unique("slot")
    database.sql('CREATE SCHEMA "My Schema"')
    database.sql('CREATE TABLE "My Schema"."a.b" ("select" int PRIMARY KEY, "ü ""x""" text)')
    database.sql('CREATE PUBLICATION "it\'s, ""mine""" FOR ALL TABLES')
    async with fsm.Keeper(
        database.dsn, slot=slot, publication='it\'s, "mine"', slot_policy="create"
    ) as keeper:
        await keeper.wait_for("Streaming")
        database.sql("""INSERT INTO "My Schema"."a.b" VALUES (1, 'v')""")
        [change] = await items_of(keeper, 1)
    assert (change.relation.schema, change.relation.name) == ("My Schema", "a.b")
    assert change.new == {"select": 1, 'ü "x"': "v"}


@pytest.mark.asyncio
async def test_several_publications_are_streamed_together(source: Source) -> None:
    second = source.database.unique("publication")
    source.database.sql("CREATE TABLE u (id bigint PRIMARY KEY)")
    source.database.sql(f"CREATE PUBLICATION {second} FOR TABLE u")
    async with source.keeper(publication=[source.publication, second]) as keeper:
        await keeper.wait_for("Streaming")
        source.insert(1, 1)
        source.database.sql("INSERT INTO u VALUES (2)")
        changes = await items_of(keeper, 2)
    assert [change.table for change in changes] == ["public.t", "public.u"]
