"""``slotkeeper demo`` as a process of its own, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support import binaries
from tests.support.command import environment

if TYPE_CHECKING:
    from collections.abc import Callable

CLEANING_UP = 25.0
"""Seconds in which nothing of a demo may be left: initdb is not interrupted."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (looked at only)


class Demo:
    """Runs the demo in a temporary folder of its own; what is left at the end is killed.

    Args:
        arguments: of ``slotkeeper demo``.
        stdout: a file descriptor; None for one that ``figures`` reads.
    """

    def __init__(self, *arguments: str, stdout: int | None = None) -> None:
        # A short name: a socket's path has few characters.
        self.temporary = Path(tempfile.mkdtemp(prefix="sk-"))
        self._before = _orphaned_memory()
        self._err = tempfile.TemporaryFile()  # noqa: SIM115  (closed in __exit__)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fsm", "demo", *arguments],
            cwd="/",
            env=environment(
                {
                    "TMPDIR": str(self.temporary),
                    "PGBIN": str(binaries.bin_dir(binaries.EMBEDDED_VERSION)),
                    "TERM": "xterm",
                    "COLUMNS": "100",
                }
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=self._err,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + CLEANING_UP
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._err.close()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def output(self, *, seconds: float = 100) -> str:
        """Wait for its end; give what it wrote to stdout."""
        out, _ = self.process.communicate(timeout=seconds)
        return out.decode()

    def figures(self) -> dict[str, Any]:
        """Wait for its end; give the one object that it printed."""
        out = self.output()
        assert self.process.returncode == 0, self.errors()
        figures: dict[str, Any] = json.loads(out)
        return figures

    def errors(self) -> str:
        """What it has written to stderr."""
        self._err.seek(0)
        return self._err.read().decode()

    def until(self, condition: Callable[[Self], object], *, seconds: float = 60) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition(self):
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.errors()}"
            time.sleep(0.02)

    def until_gone(self) -> None:
        """Wait until it has ended and nothing of it is left; fail where something stays."""
        self.process.wait(CLEANING_UP)
        deadline = time.monotonic() + CLEANING_UP
        while left := self.left():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.05)

    def left(self) -> list[str]:
        """What there is of it: processes, files, shared memory that nobody uses."""
        processes = [f"{pid}: {_words(pid)}" for pid in self.processes()]
        files = [str(path) for path in self.temporary.iterdir()]
        return processes + files + sorted(_orphaned_memory() - self._before)

    def runs(self, module: str) -> bool:
        """A process of this demo runs that module."""
        return bool(self._running(module))

    def kill(self, module: str) -> bool:
        """SIGKILL what runs that module; False where nothing does."""
        pids = self._running(module)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def _running(self, module: str) -> list[int]:
        return [pid for pid in self.processes() if f"fsm.demo.{module}" in _words(pid)]

    def processes(self) -> list[int]:
        """Its processes: by their environment, or for Postgres' own by their folder."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                mine = os.fsencode(self.temporary)
                folder = os.fsencode((entry / "cwd").readlink())
                if folder.startswith(mine) or mine in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found


def _words(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _orphaned_memory() -> set[str]:
    """Postgres' shared memory that no process has in use (POSIX and System V)."""
    segments = {path.name for path in SHARED_MEMORY.glob("PostgreSQL.*")}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            maps = (entry / "maps").read_text()
            segments = {name for name in segments if name not in maps}
    return segments | _unattached_segments()


def _unattached_segments() -> set[str]:
    """Column 2 is the id, column 7 the number of processes; see proc(5)."""
    table = Path("/proc/sysvipc/shm")
    if not table.exists():
        return set()
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    return {f"System V segment {row[1]}" for row in rows if row[6] == "0"}
