"""What goes wrong before a stream is up, through the keeper and through the command."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import fsm
from fsm.embedded import HOST, Postgres, free_port
from tests.support import binaries
from tests.support.command import Command
from tests.support.servers import Database, Servers, run_sql
from tests.support.source import Source, errors_of, reach, read

if TYPE_CHECKING:
    from fsm.errors import SlotFailed

PASSWORD = "geheim-K3nnwort"  # noqa: S105  (of a throw-away server)
WRONG = "falsches-K3nnwort"

HBA = f"""
local all all trust
host all postgres {HOST}/32 trust
host all "no way in" {HOST}/32 reject
host all all {HOST}/32 scram-sha-256
"""


@pytest.fixture(scope="module")
def guarded(servers: Servers, version: int) -> Iterator[Postgres]:
    """A server that asks every role but the superuser for a password."""
    binaries.bin_dir(version)
    with servers.make(version) as server:
        (server.data / "pg_hba.conf").write_text(HBA)
        run_sql(server, "SELECT pg_reload_conf()")
        yield server


@pytest.fixture
def scene(guarded: Postgres) -> Iterator[Scene]:
    with Database(guarded) as database:
        yield Scene(database)


class Scene:
    """A source with a slot, and a role ``app`` that may replicate and has a password."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.source = Source(database)
        self.source.create_slot()
        self.role = self.new_role("LOGIN REPLICATION")

    def new_role(self, options: str) -> str:
        role = self.database.unique("role")
        self.database.sql(f"CREATE ROLE {role} {options} PASSWORD '{PASSWORD}'")
        return role

    def dsn(self, *, password: str | None = PASSWORD, **keywords: object) -> str:
        known: dict[str, object] = {
            "host": HOST,
            "port": self.database.server.port,
            "dbname": self.database.name,
            "user": self.role,
            **({"password": password} if password else {}),
            **keywords,
        }
        return " ".join(f"{name}='{value}'" for name, value in known.items())

    def physical_slot(self) -> str:
        slot = self.database.unique("slot")
        self.database.sql("SELECT pg_create_physical_replication_slot(%s)", [slot])
        return slot

    def slot_of_test_decoding(self) -> str:
        slot = self.database.unique("slot")
        self.database.sql("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", [slot])
        return slot


Aim = dict[str, Any]
"""The dsn, slot and publication that a case differs in from what works."""


@dataclass(frozen=True)
class Case:
    aim: Callable[[Scene], Aim]
    error_class: str
    action: str
    state: str
    remedy: str
    """A piece of the remedy."""


CASES = {
    "wrong_password": Case(
        lambda scene: {"dsn": scene.dsn(password=WRONG)},
        "auth",
        "retry_long",
        "BackingOff",
        "Give the right password",
    ),
    "no_password": Case(
        lambda scene: {"dsn": scene.dsn(password=None)},
        "auth",
        "fail",
        "Failed",
        "PGPASSWORD",
    ),
    "unknown_role": Case(
        lambda scene: {"dsn": scene.dsn(user="nobody_of_this_name")},
        "auth",
        "retry_long",  # the server keeps from saying that there is no such role
        "BackingOff",
        "Give the right password",
    ),
    "kept_out_by_pg_hba": Case(
        lambda scene: {"dsn": scene.dsn(user="no way in")},
        "auth",
        "fail",
        "Failed",
        "pg_hba.conf",
    ),
    "role_without_replication": Case(
        lambda scene: {"dsn": scene.dsn(user=scene.new_role("LOGIN"))},
        "auth",
        "fail",
        "Failed",
        'ALTER ROLE "role_',
    ),
    "missing_database": Case(
        lambda scene: {"dsn": scene.dsn(dbname="no_such_database")},
        "configuration",
        "fail",
        "Failed",
        "database's name in the connection string",
    ),
    "missing_slot": Case(
        lambda _: {"slot": "no_such_slot"},
        "configuration",
        "fail",
        "Failed",
        "pg_create_logical_replication_slot('no_such_slot', 'pgoutput')",
    ),
    "missing_publication": Case(
        lambda _: {"publication": "no_such_publication"},
        "configuration",
        "fail",
        "Failed",
        'CREATE PUBLICATION "no_such_publication"',
    ),
    "slot_of_another_database": Case(
        lambda scene: {"dsn": scene.dsn(dbname="other_database")},
        "configuration",
        "fail",
        "Failed",
        "database in which the slot was created",
    ),
    "slot_of_another_plugin": Case(
        lambda scene: {"slot": scene.slot_of_test_decoding()},
        "configuration",
        "fail",
        "Failed",
        "another slot name",
    ),
    "physical_slot": Case(
        lambda scene: {"slot": scene.physical_slot()},
        "configuration",
        "fail",
        "Failed",
        "another slot name",
    ),
    "refused_port": Case(
        lambda scene: {"dsn": scene.dsn(port=free_port())},
        "transient_network",
        "retry",
        "BackingOff",
        "listen_addresses",
    ),
    "missing_socket": Case(
        lambda scene: {"dsn": scene.dsn(host="/nowhere/at/all")},
        "transient_network",
        "retry",
        "BackingOff",
        "the server runs",
    ),
    "unknown_host": Case(
        lambda scene: {"dsn": scene.dsn(host="no!such!host")},  # refused without asking any server
        "configuration",
        "retry_long",
        "BackingOff",
        "Correct the host name",
    ),
    "unknown_setting_in_options": Case(
        lambda scene: {"dsn": scene.dsn(options="-c nonsense_setting=1")},
        "configuration",
        "fail",
        "Failed",
        "'options' in the connection string",
    ),
}

MALFORMED = {
    "no_equals_sign": f"host=localhost {PASSWORD}",
    "unterminated_quote": f"host=localhost password='{PASSWORD}",
    "unknown_keyword": f"host=localhost pass={PASSWORD}",
    "port_is_no_number": f"postgresql://app:{PASSWORD}@localhost:abc/db",
    "at_sign_in_password": f"postgresql://app:1@{PASSWORD}@localhost/db",
    "bad_escape": f"postgresql://app:%zz{PASSWORD}@localhost/db",
    "bad_timeout": f"host=localhost connect_timeout={PASSWORD}",
}


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def aim(scene: Scene, case: Case, request: pytest.FixtureRequest) -> Iterator[Aim]:
    """What to give to the keeper; the slot belongs to the scene's database."""
    other = case is CASES["slot_of_another_database"]
    if other:
        run_sql(scene.database.server, "CREATE DATABASE other_database")
        run_sql(
            scene.database.server,
            f"CREATE PUBLICATION {scene.source.publication}",
            dbname="other_database",
        )
    usual = {
        "dsn": scene.dsn(),
        "slot": scene.source.slot,
        "publication": scene.source.publication,
    }
    yield {**usual, **case.aim(scene)}
    if other:
        run_sql(scene.database.server, "DROP DATABASE other_database WITH (FORCE)")


def keeper_of(aim: Aim) -> fsm.Keeper:
    return fsm.Keeper(aim["dsn"], slot=aim["slot"], publication=aim["publication"])


def command_of(aim: Aim) -> Command:
    return Command("run", aim["dsn"], "--slot", aim["slot"], "--publication", aim["publication"])


def whole_text(error: BaseException) -> str:
    """All that a log could show of it, causes included."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))


def assert_one_clear_sentence(line: str, remedy: str) -> None:
    assert line.startswith("slotkeeper: ")
    assert line.endswith(".")
    assert remedy in line
    assert ".." not in line
    assert not re.search(r"Traceback|Error\(|\bNone\b|[{}<]|SessionError", line)


async def slot_failure(keeper: fsm.Keeper) -> SlotFailed:
    with pytest.raises(fsm.SlotFailed) as raised:
        await anext(keeper)
    return raised.value


@pytest.mark.asyncio
@pytest.mark.parametrize("case", CASES, indirect=True)
async def test_the_keeper_says_the_class_the_action_and_the_remedy(aim: Aim, case: Case) -> None:
    async with keeper_of(aim) as keeper:
        assert await reach(keeper, "BackingOff", "Failed", "Streaming") == case.state
        [first, *_] = errors_of(keeper)
        assert (first.error_class, first.action) == (case.error_class, case.action)
        health = keeper.health
        assert health.error_class == case.error_class
        assert case.remedy in (health.remedy or "")
        assert not health.session_open
        assert not health.lock_held
        assert (first.delay is None) == (case.state == "Failed")
        shown = [repr(record.as_dict()) for record in keeper.journal]
        shown += [keeper.why(), repr(health)]
        if case.state == "Failed":
            failure = await slot_failure(keeper)
            assert (failure.error_class, failure.remedy) == (case.error_class, health.remedy)
            assert failure.reason
            assert str(failure) == f"{failure.reason}. {failure.remedy}"
            shown.append(whole_text(failure))
    assert PASSWORD not in "".join(shown)
    assert WRONG not in "".join(shown)


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_the_command_ends_or_goes_on_and_says_what_to_do(aim: Aim, case: Case) -> None:
    with command_of(aim) as command:
        if case.state == "Failed":
            assert command.exit_code() == 1
            assert_one_clear_sentence(command.err[-1], case.remedy)
        else:
            command.until(lambda one: any("-> BackingOff" in line for line in tuple(one.err)))
            [line, *_] = [line for line in tuple(command.err) if "-> BackingOff" in line]
            assert_one_clear_sentence(line, case.remedy)
            assert "next try in" in line
            assert command.process.poll() is None
            command.send(signal.SIGTERM)
            assert command.exit_code() == 0
        assert command.out == []
        assert "Traceback" not in command.output
        assert PASSWORD not in command.output
        assert WRONG not in command.output


def test_the_command_says_what_to_do_at_every_attempt() -> None:
    with Command(
        "run", f"host={HOST} port={free_port()}", "--slot", "s", "--publication", "p"
    ) as command:  # fmt: skip
        command.until(lambda one: sum("-> BackingOff" in x for x in tuple(one.err)) >= 3)
        lines = [line for line in command.err if "-> BackingOff" in line]
        for number, line in enumerate(lines, 1):
            assert f"attempt {number}, transient_network" in line
            assert_one_clear_sentence(line, "Check that the server runs")


@pytest.mark.parametrize("dsn", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_dsn_is_refused_before_anything_is_tried(dsn: str) -> None:
    with pytest.raises(fsm.BadInput) as raised:
        fsm.Keeper(dsn, slot="s", publication="p")
    assert PASSWORD not in whole_text(raised.value)


@pytest.mark.parametrize("dsn", MALFORMED.values(), ids=MALFORMED)
def test_the_command_calls_a_malformed_dsn_a_wrong_usage(dsn: str) -> None:
    with Command("run", dsn, "--slot", "s", "--publication", "p") as command:
        assert command.exit_code() == 2
        [line] = command.err
        assert line.startswith("slotkeeper: the DSN")
        assert PASSWORD not in command.output
        assert command.out == []


def test_a_password_that_slipped_into_the_databases_name_is_not_shown() -> None:
    """libpq takes an unescaped '/' for the end of the host: what follows is the database."""
    dsn = f"postgresql://{HOST}:1/{PASSWORD}@localhost/db"
    with Command("run", dsn, "--slot", "s", "--publication", "p") as command:
        command.until(lambda one: any("-> BackingOff" in line for line in tuple(one.err)))
        assert PASSWORD not in command.output


def test_a_dsn_without_quotes_is_wrong_usage_and_is_not_shown() -> None:
    with Command(
        "run", "host=localhost", f"password={PASSWORD}", "--slot", "s", "--publication", "p"
    ) as command:
        assert command.exit_code() == 2
        assert "in quotes" in command.err[-1]
        assert PASSWORD not in command.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("--slot", "Upper Case", "--publication", "p"),
        ("--slot", "s", "--publication", ""),
        ("--slot", "s", "--publication", "p", "--lease", "0.1"),
        ("--slot", "s", "--publication", "p", "--lock-slice", "0.1"),
        ("--slot", "s"),
        ("--publication", "p"),
        ("--slot", "s", "--publication", "p", "--lease", "soon"),
        ("--slot", "s", "--publication", "p", "--nonsense"),
    ],
)
def test_unusable_arguments_are_wrong_usage(arguments: tuple[str, ...]) -> None:
    with Command("run", "host=localhost", *arguments) as command:
        assert command.exit_code() == 2
        assert command.err[-1].startswith("slotkeeper")
        assert "Traceback" not in command.output


@pytest.mark.asyncio
async def test_a_server_that_does_not_write_logical_wal_is_named(
    servers: Servers, installed: int
) -> None:
    with servers.make(installed, {"wal_level": "replica"}) as server:
        run_sql(server, "CREATE PUBLICATION p")
        for slot_policy in ("require", "create"):
            async with fsm.Keeper(
                server.dsn(), slot="s", publication="p", slot_policy=slot_policy
            ) as keeper:
                failure = await slot_failure(keeper)
            assert failure.error_class == "configuration"
            assert "wal_level = logical" in failure.remedy
        with Command("run", server.dsn(), "--slot", "s", "--publication", "p") as command:
            assert command.exit_code() == 1
            assert_one_clear_sentence(command.err[-1], "wal_level = logical")


@pytest.mark.asyncio
async def test_a_wrong_password_is_tried_four_times_and_no_more(scene: Scene) -> None:
    async with fsm.Keeper(
        scene.dsn(password=WRONG),
        slot=scene.source.slot,
        publication=scene.source.publication,
    ) as keeper:
        for attempt in (1, 2, 3):
            await reach(keeper, "BackingOff")
            assert keeper.health.attempt == attempt
            assert (keeper.health.next_try or 0) > 20
            keeper.retry_now()
            await reach(keeper, "Locking")
        assert await reach(keeper, "Failed") == "Failed"
        failure = await slot_failure(keeper)
        tries = [record for record in keeper.journal if record.dest == "Locking"]
    assert failure.error_class == "auth"
    assert len({record.visit for record in tries}) == 4


@pytest.mark.asyncio
async def test_a_password_that_is_set_right_while_it_waits_is_taken(scene: Scene) -> None:
    passwords = [WRONG, PASSWORD]
    async with fsm.Keeper(
        lambda: scene.dsn(password=passwords.pop(0)),
        slot=scene.source.slot,
        publication=scene.source.publication,
    ) as keeper:
        await reach(keeper, "BackingOff")
        keeper.retry_now()
        assert await reach(keeper, "Streaming", "Failed") == "Streaming"


@pytest.mark.asyncio
async def test_a_server_that_comes_up_later_is_found_by_itself(
    servers: Servers, installed: int
) -> None:
    with servers.make(installed) as server:
        run_sql(server, "CREATE PUBLICATION p")
        run_sql(server, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        server.stop()
        async with fsm.Keeper(server.dsn(), slot="s", publication="p") as keeper:
            await reach(keeper, "BackingOff")
            server.start()
            assert await reach(keeper, "Streaming", "Failed") == "Streaming"
        server.stop()


@pytest.mark.asyncio
async def test_a_missing_slot_that_is_made_meanwhile_is_taken_after_a_reset(
    source: Source,
) -> None:
    async with source.keeper(slot_policy="require") as keeper:
        failure = await slot_failure(keeper)
        assert failure.facts["finding"] == "slot_missing"
        source.create_slot()
        keeper.reset()
        assert await reach(keeper, "Streaming", "BackingOff") == "Streaming"


@pytest.mark.asyncio
async def test_changes_can_be_waited_for_right_after_a_reset(source: Source) -> None:
    async with source.keeper(slot_policy="require") as keeper:
        await slot_failure(keeper)
        source.create_slot()
        source.insert(1, 1)
        keeper.reset()
        assert await read(keeper, 1) == [1]
