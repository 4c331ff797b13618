from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from fsm import embedded
from fsm.embedded import EmbeddedError, Postgres, lock_file, processes
from fsm.embedded.account import Account
from tests.support import binaries
from tests.support.servers import Servers, run_sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]

OWNER = """
import sys
from pathlib import Path
from fsm.embedded import Postgres
server = Postgres(Path(sys.argv[1]), Path(sys.argv[2]))
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def bin_dir(installed: int) -> Path:
    return binaries.bin_dir(installed)


@pytest.fixture
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sk-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def prepared(servers: Servers, installed: int) -> Iterator[Postgres]:
    """A server that is not started yet, with its cluster in a given folder."""
    server, folder = servers._new(installed, None)
    with contextlib.closing(server):
        yield server
    shutil.rmtree(folder)


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def gone(pid: int) -> bool:
    """Gone, or a zombie that only waits for its new parent."""
    stat = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return stat == "" or stat.startswith("Z")


def backends(server: Postgres) -> list[int]:
    return [pid for (pid,) in run_sql(server, "SELECT pid FROM pg_stat_activity")]


def test_a_started_server_answers_with_its_version(own_server: Postgres) -> None:
    [(number, wal_level)] = run_sql(
        own_server,
        "SELECT current_setting('server_version_num')::int, current_setting('wal_level')",
    )
    assert number // 10_000 == own_server.version
    assert wal_level == "logical"


def test_the_socket_folder_leads_to_the_same_server(own_server: Postgres) -> None:
    address = f"host={own_server.socket_dir} port={own_server.port} user=postgres dbname=postgres"
    with psycopg.connect(address) as connection:
        row = connection.execute("SELECT current_setting('port')::int").fetchone()
    assert row == (own_server.port,)


def test_a_dsn_carries_names_and_parameters_whole(own_server: Postgres) -> None:
    run_sql(own_server, 'CREATE ROLE "a b/c@d" LOGIN')
    dsn = own_server.dsn(user="a b/c@d", application_name="x & y=z")
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT current_user, current_setting('application_name')"
        ).fetchone()
    assert row == ("a b/c@d", "x & y=z")


@pytest.mark.parametrize("mode", ["fast", "immediate", "smart"])
def test_data_and_port_outlive_a_restart(own_server: Postgres, mode: embedded.Mode) -> None:
    port, pid = own_server.port, own_server.pid
    run_sql(own_server, "CREATE TABLE kept AS SELECT 7 AS n")
    own_server.restart(mode)
    assert (own_server.port, own_server.pid == pid) == (port, False)
    assert run_sql(own_server, "SELECT n FROM kept") == [(7,)]


def test_a_changed_setting_acts_at_the_restart(own_server: Postgres) -> None:
    own_server.settings["cluster_name"] = "it's \\ mine"
    own_server.restart()
    assert run_sql(own_server, "SHOW cluster_name") == [("it's \\ mine",)]


def test_alter_system_overrides_a_setting(own_server: Postgres) -> None:
    run_sql(own_server, "ALTER SYSTEM SET max_replication_slots = 3")
    own_server.restart()
    assert run_sql(own_server, "SHOW max_replication_slots") == [("3",)]


def test_a_stopped_server_takes_no_connections(own_server: Postgres) -> None:
    own_server.stop()
    assert not own_server.running
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(own_server.dsn())
    with pytest.raises(EmbeddedError, match="no pid"):
        _ = own_server.pid


def test_a_smart_stop_that_waits_for_a_client_is_given_up(own_server: Postgres) -> None:
    with (
        psycopg.connect(own_server.dsn()),
        pytest.raises(EmbeddedError, match=r"within 0\.2 s of a smart stop"),
    ):
        own_server.stop("smart", timeout=0.2)
    assert eventually(lambda: not own_server.running)


def test_a_second_start_is_refused(own_server: Postgres) -> None:
    with pytest.raises(EmbeddedError, match="already runs"):
        own_server.start()
    assert run_sql(own_server, "SELECT 1") == [(1,)]


def test_a_kill_takes_a_stopped_backend_along(own_server: Postgres) -> None:
    run_sql(own_server, "CREATE TABLE kept AS SELECT 7 AS n")
    with psycopg.connect(own_server.dsn()) as connection:
        pids = [own_server.pid, *backends(own_server)]
        os.kill(connection.info.backend_pid, signal.SIGSTOP)
        own_server.kill()
        assert all(gone(pid) for pid in pids)
    own_server.start()
    assert run_sql(own_server, "SELECT n FROM kept") == [(7,)]


def test_closing_ends_a_stopped_backend_whose_postmaster_is_gone(prepared: Postgres) -> None:
    with prepared as server, psycopg.connect(server.dsn()) as connection:
        orphan = connection.info.backend_pid
        os.kill(orphan, signal.SIGSTOP)
        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: not server.running)
        assert not gone(orphan)
        server.close()
        assert gone(orphan)


@pytest.mark.parametrize("end", ["close", "kill"])
def test_nothing_is_left_of_a_closed_server(bin_dir: Path, end: str) -> None:
    with Postgres(bin_dir) as server:
        folder, port, postmaster = server.folder, server.port, server.pid
        pids = [postmaster, *backends(server)]
        segment = str(lock_file.shared_memory_of(server.data, server.pid))
        assert segment in segments()
        if end == "kill":
            server.kill()
    assert not folder.exists()
    assert all(gone(pid) for pid in pids)
    assert segment not in segments()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((server.host, port))


def segments() -> set[str]:
    """The ids of this machine's System V shared memory."""
    listing = subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=True).stdout
    return {fields[1] for line in listing.splitlines() if len(fields := line.split()) > 1}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own folder")
def test_a_killed_cluster_keeps_nothing_in_dev_shm(own_server: Postgres) -> None:
    opened = mapped(own_server.pid)
    assert not [path for path in opened if path.startswith("/dev/shm/")]  # noqa: S108 - where they would be
    assert [path for path in opened if "pg_dynshmem" in path]


def mapped(pid: int) -> list[str]:
    """The files in a process's memory."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [fields[5] for line in lines if len(fields := line.split()) > 5]


def test_a_server_can_be_started_again_after_it_was_closed(bin_dir: Path) -> None:
    server = Postgres(bin_dir)
    for _ in range(2):
        with server:
            assert run_sql(server, "SELECT 1") == [(1,)]


def test_a_given_folder_is_kept_with_its_data(bin_dir: Path, scratch: Path) -> None:
    with Postgres(bin_dir, scratch / "mine") as server:
        run_sql(server, "CREATE TABLE kept AS SELECT 7 AS n")
    with Postgres(bin_dir, scratch / "mine") as server:
        assert run_sql(server, "SELECT n FROM kept") == [(7,)]


def test_a_folder_too_long_for_a_socket_gets_another_socket_folder(
    bin_dir: Path, scratch: Path
) -> None:
    with Postgres(bin_dir, scratch / ("x" * 120)) as server:
        sockets = server.socket_dir
        assert sockets != server.folder
        with psycopg.connect(f"host={sockets} port={server.port} user=postgres dbname=postgres"):
            pass
    assert not sockets.exists()


def test_a_folder_reached_through_a_link_is_swept_too(bin_dir: Path, scratch: Path) -> None:
    (scratch / "real").mkdir()
    (scratch / "link").symlink_to(scratch / "real")
    with (
        Postgres(bin_dir, scratch / "link") as server,
        psycopg.connect(server.dsn()) as connection,
    ):
        os.kill(connection.info.backend_pid, signal.SIGSTOP)
        os.kill(server.pid, signal.SIGKILL)
        server.kill()
        assert gone(connection.info.backend_pid)


def test_a_start_that_fails_shows_the_log_and_leaves_nothing(
    bin_dir: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with pytest.raises(EmbeddedError, match="no_such_setting"):
        Postgres(bin_dir, settings={"no_such_setting": "1"}).start()
    assert list(scratch.iterdir()) == []


def test_a_restart_that_fails_keeps_the_folder(own_server: Postgres) -> None:
    own_server.settings["shared_buffers"] = "much"
    with pytest.raises(EmbeddedError, match="shared_buffers"):
        own_server.restart()
    own_server.settings["shared_buffers"] = "16MB"
    own_server.start()
    assert run_sql(own_server, "SHOW shared_buffers") == [("16MB",)]


def test_a_port_that_was_taken_meanwhile_is_replaced(
    prepared: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = embedded.free_port()
    with socket.socket() as rival:
        rival.bind((embedded.HOST, 0))
        rival.listen()
        offers = iter([rival.getsockname()[1], free])
        monkeypatch.setattr("fsm.embedded.server.free_port", lambda: next(offers))
        with prepared as server:
            assert server.port == free
            assert run_sql(server, "SELECT 1") == [(1,)]


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc shows it")
def test_the_hosts_own_variables_do_not_reach_the_server(
    prepared: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as host:
        host.setenv("PGSERVICE", "elsewhere")
        host.setenv("LC_ALL", "de_DE.UTF-8")
        host.setenv("LD_LIBRARY_PATH", "/mine")
        prepared.start()
    pairs = Path(f"/proc/{prepared.pid}/environ").read_text().split("\0")
    environment = dict(pair.split("=", 1) for pair in pairs if pair)
    assert "PGSERVICE" not in environment
    assert environment["LC_ALL"] == "C"
    assert environment["LD_LIBRARY_PATH"] == f"{prepared.bin_dir.parent / 'lib'}:/mine"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_server_outlives_its_parent(bin_dir: Path, scratch: Path, number: int) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(bin_dir), str(scratch / "s")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with owner:
        assert owner.stdout is not None
        postmaster = int(owner.stdout.readline())
        assert not gone(postmaster)
        owner.send_signal(number)
    assert eventually(lambda: gone(postmaster))
    assert eventually(lambda: processes.members((scratch / "s" / "data").resolve()) == [])


def test_a_server_outlives_the_thread_that_started_it(prepared: Postgres) -> None:
    thread = threading.Thread(target=prepared.start)
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert run_sql(prepared, "SELECT 1") == [(1,)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
class TestRootWithoutUserNamespaces:
    @pytest.fixture(autouse=True)
    def nobody(self, monkeypatch: pytest.MonkeyPatch) -> pwd.struct_passwd:
        entry = pwd.getpwnam("nobody")
        account = Account((), entry.pw_uid, entry.pw_gid)
        monkeypatch.setattr("fsm.embedded.account.current", lambda: account)
        return entry

    def test_the_server_runs_as_nobody(self, bin_dir: Path, nobody: pwd.struct_passwd) -> None:
        with Postgres(bin_dir) as server:
            assert server.data.stat().st_uid == nobody.pw_uid
            assert Path(f"/proc/{server.pid}").stat().st_uid == nobody.pw_uid
            assert run_sql(server, "SELECT 1") == [(1,)]

    def test_binaries_that_nobody_may_not_read_are_copied(
        self, bin_dir: Path, scratch: Path
    ) -> None:
        if bin_dir.is_relative_to(binaries.SYSTEM):
            pytest.skip("the system's servers can be read by everybody, and cannot be moved")
        package = bin_dir.parents[1]
        hidden = scratch / package.name
        shutil.copytree(package, hidden, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, scratch / libraries.name)
        hidden /= bin_dir.parent.name
        with Postgres(hidden / "bin") as server:
            folder = server.folder
            executable = Path(f"/proc/{server.pid}/exe").readlink()
            assert executable.is_relative_to(folder)
            assert run_sql(server, "SELECT 1") == [(1,)]
        assert not folder.exists()
        assert (hidden / "bin" / "postgres").stat().st_uid == 0
