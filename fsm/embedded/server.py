"""A server that can be started, stopped, killed and removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self, TypeAlias
from urllib.parse import quote, urlencode

from fsm.embedded import account, lock_file
from fsm.embedded.binaries import copy_install, find_binaries, version_of
from fsm.embedded.cluster import make_cluster
from fsm.embedded.environment import environment
from fsm.embedded.errors import EmbeddedError
from fsm.embedded.ports import HOST, free_port
from fsm.embedded.processes import children_of, kill_all, remove_shared_memory
from fsm.embedded.settings import SETTINGS, include_settings, write_settings
from fsm.embedded.watcher import Watcher

Mode: TypeAlias = Literal["fast", "immediate", "smart"]
"""How a server is stopped; see "Shutting Down the Server" in the Postgres documentation."""

_SIGNALS: Mapping[Mode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_BIND_FAILED = "could not bind"
_PORT_TRIES = 5
_POLL = 0.005
_LOG_TAIL = 30
# sun_path holds 104 bytes on macOS and 108 on Linux, the final NUL included.
_SOCKET_FOLDER_LIMIT = 104 - len("/.s.PGSQL.65535") - 1


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
        self._watcher: Watcher | None = None
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
        owner = account.current()
        owner.give(self._folder)
        self._run_bin = self.bin_dir
        if not owner.can_run(self.bin_dir):
            self._run_bin = self._copy_install()
        if not (self.data / "PG_VERSION").exists():
            make_cluster(self._run_bin, self.data)
        include_settings(self.data)

    def _copy_install(self) -> Path:
        """Bring the binaries to where the account that runs the server may read them."""
        target = self.folder / "install"
        copied = copy_install(self.bin_dir, target)
        account.current().give(target)
        return copied

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
        addresses = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": f'"{self.socket_dir}"',
        }
        write_settings(self.data, {**self.settings, **addresses})
        owner = account.current()
        owner.give(self.folder)
        if self._sockets is not None:
            owner.give(self._sockets)

    def _run(self, timeout: float) -> bool:
        """Start the postmaster and wait for ``ready``: False where it ended or took too long."""
        command = [str(self._run_bin / "postgres"), "-D", str(self.data)]
        self._watcher = Watcher()
        with self.log.open("ab") as log:
            self._process = self._watcher.launch(
                command, env=environment(self._run_bin), stderr=log, owner=account.current()
            )
        self._last_pid = self._process.pid
        deadline = time.monotonic() + timeout
        while not lock_file.says_ready(self.data, self._last_pid):
            if self._process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        return True

    def _end_processes(self) -> None:
        if self._folder is None:
            return
        children: list[int] = []
        if self._process is not None and self._process.poll() is None:
            children = children_of(self._process.pid)
            self._process.kill()
            self._process.wait()
        kill_all(self.data, children)
        segment = lock_file.shared_memory_of(self.data, self._last_pid)
        if segment is not None:
            remove_shared_memory(segment)
        self._release()

    def _release(self) -> None:
        self._process = None
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    def _log_tail(self) -> str:
        return _tail(self.log.read_text(errors="replace"))


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-_LOG_TAIL:])
