"""Every built-in type and what is built on them, compared with what SQL says of the same rows."""

from __future__ import annotations

import struct
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

import fsm
from fsm.postgres.interval import Interval
from fsm.postgres.values import (
    TYPE_NAMES,
    OutOfRange,
    array_of,
    converter_for,
    jsonable,
    multirange_of,
    range_of,
)
from tests.support.source import Source, items_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.servers import Database

INTERVALS_17 = 170000
"""The first version that has infinite intervals."""

# What psycopg reads in the binary format, and we in the text format.
BINARY = {
    "inet": [
        *("'192.168.0.1'", "'192.168.0.1/24'", "'0.0.0.0/0'", "'255.255.255.255'"),
        *("'::1'", "'fe80::a/64'", "'::/0'", "'::ffff:1.2.3.4'", "'::1.2.3.4/100'"),
        "'2001:db8:0:0:1:0:0:1'",
    ],
    "cidr": ["'10.0.0.0/8'", "'1.2.3.4'", "'0/0'", "'2001:db8::/32'", "'::1'"],
    "bool[]": ["'{t,f,NULL}'", "'{}'"],
    "bytea[]": [r"""'{"\\x00ff5c22","\\x",NULL}'"""],
    "int2[]": ["'{-32768,NULL,32767}'"],
    "int4[]": ["'{}'", "'{1,NULL,3}'", "'{{1,2},{3,4}}'", "'{{{1},{NULL}},{{3},{4}}}'"],
    "int8[]": ["'{-9223372036854775808,9223372036854775807}'"],
    "oid[]": ["'{0,4294967295}'"],
    "float8[]": ["'{0.1,-0,NaN,Infinity,-Infinity,5e-324,1.7976931348623157e308}'"],
    "numeric[]": ["'{1.50,NaN,Infinity,-0.001,1e30}'"],
    "text[]": [
        """'{"a,b","c\\"d",NULL,"NULL",null,"null"}'""",
        r"ARRAY['', ' ', 'back\slash', '{}', '{', '\"', E'line\nbreak', E'\t', 'zażółć 🐘', ';']",
        "ARRAY[['a', 'b c'], [NULL, 'd']]",
        "ARRAY[repeat('long \"', 5000), 'x']",
        "ARRAY[E'\\u00a0', E'a\\u2003b']",
    ],
    "varchar(9)[]": ["'{a,\" b\"}'"],
    "char(3)[]": ["'{a,\"\"}'"],
    "name[]": ["'{a_name}'"],
    "date[]": ["'{2024-02-29,NULL,0001-01-01}'"],
    "time[]": ["'{00:00,23:59:59.999999}'"],
    "timetz[]": ["'{12:30:00.25+02,23:59:59-07:30}'"],
    "timestamp[]": ["'{2024-02-29 23:59:59.999999,NULL}'"],
    "timestamptz[]": ["'{2024-02-29 12:00:00.000001+02,NULL}'"],
    "uuid[]": ["'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'"],
    "inet[]": ["'{192.168.0.1/24,::1,NULL}'"],
    "cidr[]": ["'{10.0.0.0/8,::/0}'"],
    "json[]": ["""ARRAY['{"a": [1, "x,y"]}', '[]', 'null', NULL]::json[]"""],
    "jsonb[]": ["""ARRAY['{"a": [1, "x,y", "\\""]}', '[[1]]', 'null', NULL]::jsonb[]"""],
    "int4range": ["'[1,5)'", "'(1,5]'", "'empty'", "'(,)'", "'[-3,)'", "'(,7]'"],
    "int8range": ["'[-9223372036854775808,9223372036854775806]'"],
    "numrange": ["'[1.50,2]'", "'(NaN,)'", "'(1,1)'", "'(-0.5,1e30)'"],
    "daterange": ["'[2024-02-29,2024-03-02]'", "'(,2024-01-01)'"],
    "tsrange": ["'[2024-02-29 12:00:00.5,2024-03-01)'", "'(,)'", "'(2024-01-01,)'"],
    "tstzrange": ["'[2024-02-29 12:00+02,2024-03-01 00:00-05]'", "'empty'"],
    "int4range[]": ["""ARRAY['[1,5)', 'empty', '(,)', NULL]::int4range[]"""],
    "tsrange[]": ["ARRAY['[2024-02-29 12:00,2024-03-01)']::tsrange[]"],
    "int4multirange": ["'{}'", "'{[1,3),[5,7]}'", "'{(,)}'", "'{(,1),[9,)}'"],
    "int8multirange": ["'{[1,3)}'"],
    "nummultirange": ["'{[1.0,2.50],(3,)}'"],
    "datemultirange": ["'{[2024-01-01,2024-02-01),[2024-03-01,)}'"],
    "tsmultirange": ["'{[2024-01-01 12:00,2024-01-02),[2024-03-01,)}'"],
    "tstzmultirange": ["'{[2024-01-01 12:00+02,2024-01-02 00:00+00)}'"],
    "int4multirange[]": ["ARRAY['{[1,3),[5,7]}', '{}', NULL]::int4multirange[]"],
    "datemultirange[]": ["ARRAY['{[2024-01-01,2024-02-01)}']::datemultirange[]"],
}

# Types that stay text, alone and as elements.
TEXT = {
    "bit(3)": ["B'101'", "B'000'"],
    "varbit": ["B'10101'", "B''"],
    "money": ["'12.34'", "'-1234567.89'"],
    "xml": ["'<a b=\"c\">text, é</a>'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "macaddr8": ["'08:00:2b:01:02:03:04:05'"],
    "point": ["'(0.1,-2)'"],
    "lseg": ["'[(0,1),(2,3)]'"],
    "line": ["'{1,2,3}'"],
    "box": ["'(3,3),(1,1)'"],
    "path": ["'[(0,1),(2,3)]'", "'((0,1),(2,3))'"],
    "polygon": ["'((0,1),(2,3))'"],
    "circle": ["'<(0,1),2>'"],
    "tsvector": ["""$$'a':1 'fat':2A,7 'it''s' 'a b'$$"""],
    "tsquery": ["'fat & (rat | !cat:ab*)'"],
    "jsonpath": ["""'$.a[*] ? (@ > 1)."b c"'"""],
    "pg_lsn": ["'16/B374D848'", "'0/0'"],
    "txid_snapshot": ["'10:20:10,14,15'"],
    "pg_snapshot": ["'10:20:10,14,15'"],
    "xid": ["'12'"],
    "xid8": ["'18446744073709551615'"],
    "cid": ["'1'"],
    "tid": ["'(1,2)'"],
    "name": ["'a_name'"],
    '"char"': ["'c'", "','", r"'\'", "''"],
    "regclass": ["'pg_class'", "'information_schema.tables'"],
    "regtype": ["'timestamptz'", "'int4[]'"],
    "regproc": ["'now'"],
    "regprocedure": ["'abs(int4)'"],
    "regoper": ["'||/'"],
    "regoperator": ["'+(int4,int4)'"],
    "regrole": ["'pg_monitor'"],
    "regnamespace": ["'pg_catalog'"],
    "regconfig": ["'simple'"],
    "regdictionary": ["'simple'"],
    "regcollation": ["""'"C"'"""],
    "refcursor": ["'a cursor, \"b\"'"],
    "aclitem": ["'pg_monitor=r/pg_monitor'"],
    "int2vector": ["'1 2 3'", "''"],
    "oidvector": ["'1 2 3'"],
}

# Valid values for which the Python type has no place: their text, marked.
OUT_OF_RANGE = {
    "int4[]": ["'[2:3]={5,6}'", "'[0:0]={7}'", "'[-1:0][1:2]={{1,2},{3,NULL}}'"],
    "text[]": ["""'[0:1]={"a,b",NULL}'"""],
    "box[]": ["'[0:1]={(3,3),(1,1);(2,2),(0,0)}'"],
    "int4range[]": ["""'[0:0]={"[1,5)"}'"""],
    "date": ["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'10000-01-01'", "'5874897-12-31'"],
    "timestamp": ["'infinity'", "'4714-11-24 00:00 BC'", "'294276-12-31 23:59:59.999999'"],
    "timestamptz": ["'-infinity'", "'0044-03-15 12:00+00 BC'", "'294276-12-31 00:00+00'"],
    "time": ["'24:00:00'"],
    "timetz": ["'24:00:00+02'"],
}

INTERVALS = [
    *("'0'", "'1 year'", "'-1 year'", "'1 mon'", "'-1 mon'", "'11 mons'", "'13 mons'"),
    *("'1 day'", "'-1 day'", "'2 days'", "'1 second'", "'-0.000001'", "'0.1'"),
    *("'1 year 2 mons -3 days 04:05:06.7'", "'-1 year -2 mons +3 days -04:05:06.789012'"),
    *("'1 mon -1 day'", "'-1 mon 1 day'", "'-1 day 00:00:01'", "'1 day -00:00:01'"),
    *("'100:00:00'", "'-23:59:59.999999'", "'178956970 years 7 mons'"),
    *("'-178956970 years -8 mons'", "'2147483647 days'", "'-2147483648 days'"),
    *("'2147483647:59:59.999999'", "'-2147483647:59:59.999999'"),
]


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    dsn = database.server.dsn(database.name, options="-c TimeZone=UTC -c IntervalStyle=postgres")
    with closing(psycopg.connect(dsn, autocommit=True)) as made:
        yield made


def selected(
    connection: psycopg.Connection[tuple[Any, ...]], expression: str, *, binary: bool = False
) -> list[Any]:
    """What SQL says of each row of ``v``, in order."""
    query = f"SELECT {expression} FROM v ORDER BY id".encode()
    return [value for (value,) in connection.execute(query, binary=binary)]


def require(database: Database, type_name: str) -> None:
    """Skip where the server was built without the type's library: libxml is an option."""
    try:
        database.sql(f"SELECT ({TEXT[type_name][0]})::{type_name}")
    except psycopg.errors.FeatureNotSupported as error:
        pytest.skip(str(error))


async def handed_over(database: Database, type_name: str, expressions: Sequence[str]) -> list[Any]:
    """Insert the values, and NULL, into a table ``v``: the rows that the keeper hands over."""
    slot, publication = database.unique("slot"), database.unique("publication")
    database.sql(f"CREATE TABLE v (id int PRIMARY KEY, value {type_name})")
    database.sql(f"CREATE PUBLICATION {publication} FOR TABLE v")
    async with fsm.Keeper(
        database.dsn, slot=slot, publication=publication, slot_policy="create"
    ) as keeper:
        await keeper.wait_for("Streaming")
        rows = ", ".join(f"({n}, ({e})::{type_name})" for n, e in enumerate((*expressions, "NULL")))
        database.sql(f"INSERT INTO v VALUES {rows}")
        changes = await items_of(keeper, len(expressions) + 1)
    return [change.new for change in changes]


def exact(value: Any) -> Any:
    """Distinguish what == does not: NaN, -0.0, the scale of a Decimal, True and 1."""
    if isinstance(value, list):
        return [exact(item) for item in value]
    if isinstance(value, Multirange):
        return ("Multirange", [exact(item) for item in value])
    if isinstance(value, Range):
        return ("Range", exact(value.lower), exact(value.upper), value.bounds)
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)
    return type(value).__name__, repr(value)


@pytest.mark.parametrize("type_name", BINARY)
@pytest.mark.asyncio
async def test_a_value_is_what_a_select_in_binary_gives(
    database: Database, connection: psycopg.Connection[tuple[Any, ...]], type_name: str
) -> None:
    rows = await handed_over(database, type_name, BINARY[type_name])
    expected = selected(connection, "value", binary=True)
    assert [exact(row["value"]) for row in rows] == [exact(value) for value in expected]
    assert rows[-1]["value"] is None


@pytest.mark.parametrize("type_name", TEXT)
@pytest.mark.asyncio
async def test_a_type_that_stays_text_is_as_the_server_writes_it(
    database: Database, connection: psycopg.Connection[tuple[Any, ...]], type_name: str
) -> None:
    require(database, type_name)
    rows = await handed_over(database, type_name, TEXT[type_name])
    values = [row["value"] for row in rows]
    assert values == [*selected(connection, "format('%s', value)")[:-1], None]
    assert {type(value) for value in values} == {str, type(None)}
    column = rows[0]._relation.columns[1]
    assert TYPE_NAMES[column.type_oid] == column.type_name


@pytest.mark.parametrize("type_name", [name for name in TEXT if "vector" not in name])
@pytest.mark.asyncio
async def test_arrays_of_a_type_that_stays_text_are_lists_of_its_texts(
    database: Database, connection: psycopg.Connection[tuple[Any, ...]], type_name: str
) -> None:
    require(database, type_name)
    items = ", ".join(f"({expression})::{type_name}" for expression in (*TEXT[type_name], "NULL"))
    rows = await handed_over(database, f"{type_name}[]", [f"ARRAY[{items}]", f"ARRAY[[{items}]]"])
    [expected, _, _] = selected(
        connection, "ARRAY(SELECT format('%s', e) FROM unnest(value) WITH ORDINALITY u(e, n))"
    )
    expected[-1] = None
    assert rows[0]["value"] == expected
    assert rows[1]["value"] == [expected]


@pytest.mark.parametrize("type_name", OUT_OF_RANGE)
@pytest.mark.asyncio
async def test_what_the_python_type_cannot_hold_is_its_text_and_marked(
    database: Database, connection: psycopg.Connection[tuple[Any, ...]], type_name: str
) -> None:
    rows = await handed_over(database, type_name, OUT_OF_RANGE[type_name])
    values = [row["value"] for row in rows[:-1]]
    assert values == selected(connection, "format('%s', value)")[:-1]
    assert {type(value) for value in values} == {OutOfRange}
    assert [jsonable(value) for value in values] == values


@pytest.mark.asyncio
async def test_what_python_cannot_hold_is_marked_inside_arrays_and_ranges_too(
    source: Source,
) -> None:
    source.database.sql("ALTER TABLE t ADD d date[], ADD r daterange, ADD m datemultirange")
    async with source.keeper() as keeper:
        await keeper.wait_for("Streaming")
        source.database.sql(
            "INSERT INTO t VALUES (1, '', '{infinity,2024-01-01,NULL}', '[-infinity,)',"
            " '{(,10000-01-01)}')"
        )
        [change] = await items_of(keeper, 1)
    row = change.new
    assert [type(item).__name__ for item in row["d"]] == ["OutOfRange", "date", "NoneType"]
    assert (type(row["r"].lower), row["r"].lower, row["r"].upper) == (OutOfRange, "-infinity", None)
    assert (row["m"][0].lower, row["m"][0].upper) == (None, "10000-01-01")


@pytest.mark.asyncio
async def test_an_interval_has_the_parts_that_the_server_stores(
    database: Database, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    rows = await handed_over(database, "interval", INTERVALS)
    stored = selected(connection, "interval_send(value)", binary=True)[:-1]
    parts = [struct.unpack(">qii", sent) for sent in stored]
    expected = [Interval(months, days, microseconds) for microseconds, days, months in parts]
    assert [row["value"] for row in rows[:-1]] == expected
    assert rows[-1]["value"] is None


@pytest.mark.asyncio
async def test_the_iso_form_of_an_interval_is_the_servers(
    database: Database, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    rows = await handed_over(database, "interval", INTERVALS)
    connection.execute("SET IntervalStyle = iso_8601")
    texts = [row["value"].isoformat() for row in rows[:-1]]
    assert texts == selected(connection, "value::text")[:-1]


@pytest.mark.asyncio
async def test_the_server_reads_the_iso_form_as_the_same_interval(
    database: Database, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    rows = await handed_over(database, "interval", INTERVALS)
    query = "SELECT interval_send(%s::interval)"
    sent = [connection.execute(query, [row["value"].isoformat()]).fetchone() for row in rows[:-1]]
    assert sent == [(each,) for each in selected(connection, "interval_send(value)")[:-1]]


@pytest.mark.asyncio
async def test_arrays_of_intervals_hold_intervals(database: Database) -> None:
    expressions = ["ARRAY['1 mon -1 day', NULL, '00:00:01']::interval[]"]
    [row, _] = await handed_over(database, "interval[]", expressions)
    assert row["value"] == [Interval(1, -1, 0), None, Interval(0, 0, 1_000_000)]


@pytest.mark.asyncio
async def test_an_infinite_interval_is_marked(
    database: Database, connection: psycopg.Connection[tuple[Any, ...]]
) -> None:
    if connection.info.server_version < INTERVALS_17:
        with pytest.raises(psycopg.errors.InvalidDatetimeFormat):
            database.sql("SELECT 'infinity'::interval")
        return
    rows = await handed_over(database, "interval", ["'infinity'", "'-infinity'"])
    values = [row["value"] for row in rows[:-1]]
    assert values == ["infinity", "-infinity"]
    assert {type(value) for value in values} == {OutOfRange}


@pytest.mark.asyncio
async def test_a_domain_is_read_as_its_base_type(source: Source) -> None:
    sql = source.database.sql
    sql("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
    sql("CREATE DOMAIN small AS positive CHECK (VALUE < 100)")
    sql("CREATE DOMAIN tags AS text[]")
    sql("CREATE DOMAIN span AS int4range")
    sql("CREATE DOMAIN wait AS interval")
    sql("CREATE TABLE u (id positive PRIMARY KEY, s small, t tags, r span, w wait)")
    sql(f"ALTER PUBLICATION {source.publication} ADD TABLE u")
    async with source.keeper() as keeper:
        await keeper.wait_for("Streaming")
        sql("INSERT INTO u VALUES (1, 2, '{\"a,b\"}', '[1,3]', '1 mon')")
        [change] = await items_of(keeper, 1)
    assert change.new.as_dict() == {
        "id": 1,
        "s": 2,
        "t": ["a,b"],
        "r": Range(1, 4, "[)"),
        "w": Interval(1, 0, 0),
    }


@pytest.mark.asyncio
async def test_types_of_ones_own_stay_text_until_the_host_reads_them(source: Source) -> None:
    sql = source.database.sql
    sql("CREATE TYPE mood AS ENUM ('sad', 'happy, {\"day\"}')")
    sql("CREATE TYPE pair AS (a int, b text)")
    sql("CREATE TYPE textrange AS RANGE (subtype = text)")
    sql("CREATE DOMAIN positive AS int")
    sql(
        "CREATE TABLE u (id int PRIMARY KEY, m mood, p pair, ms mood[], ps pair[],"
        " ds positive[], r textrange, rs textmultirange)"
    )
    sql(f"ALTER PUBLICATION {source.publication} ADD TABLE u")
    async with source.keeper() as keeper:
        await keeper.wait_for("Streaming")
        sql(
            "INSERT INTO u VALUES (1, 'happy, {\"day\"}', (1, 'a,b'), ARRAY['sad',"
            " 'happy, {\"day\"}', NULL]::mood[], ARRAY[(1, 'a\"b')]::pair[], '{1,2}',"
            " textrange('a \"b\"', 'c\\,'), textmultirange(textrange('', 'a')))"
        )
        [change] = await items_of(keeper, 1)
    row = change.new
    names = {column.name: column.type_name for column in change.relation.columns}
    assert names["ms"] == "public._mood"
    assert [row[name] for name in ("m", "p")] == ['happy, {"day"}', '(1,"a,b")']
    own = ("ms", "ps", "ds", "r", "rs")
    assert all(type(row[name]) is str for name in own)
    assert array_of(None)(row["ms"]) == ["sad", 'happy, {"day"}', None]
    assert array_of(None)(row["ps"]) == ['(1,"a""b")']
    assert array_of(converter_for("int4"))(row["ds"]) == [1, 2]
    assert range_of(None)(row["r"]) == Range('a "b"', "c\\,", "[)")
    assert multirange_of(None)(row["rs"]) == Multirange([Range("", "a", "[)")])


def test_every_built_in_type_is_named_and_none_that_is_not(
    connection: psycopg.Connection[tuple[Any, ...]],
) -> None:
    """Below 10000 (FirstGenbkiObjectId) the server sends no Type message."""
    found = connection.execute(
        "SELECT oid::int8, typname::text FROM pg_type"
        " WHERE oid < 10000 AND typtype <> 'p' AND typrelid = 0"
    ).fetchall()
    assert dict(found) == TYPE_NAMES


def test_every_array_has_the_delimiter_that_its_converter_expects(
    connection: psycopg.Connection[tuple[Any, ...]],
) -> None:
    found = connection.execute(
        "SELECT '_' || typname, typdelim::text FROM pg_type WHERE typarray <> 0 AND oid < 10000"
        " AND typrelid = 0 AND typtype <> 'p'"
    ).fetchall()
    for name, delimiter in found:
        convert = converter_for(name)
        assert convert is not None
        assert convert(f"{{NULL{delimiter}NULL}}") == [None, None]
