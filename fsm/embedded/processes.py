"""What a killed postmaster may leave: processes, and the shared memory they had."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_POLL = 0.005


def kill_all(data: Path, children: Sequence[int]) -> None:
    """SIGKILL what is left of a server until nothing is.

    Args:
        data: the data directory, resolved.
        children: what ``children_of`` said while the postmaster was alive.
    """
    while left := [*members(data), *_alive(children)]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL)


def remove_shared_memory(segment: int) -> None:
    """Remove the System V segment with this id."""
    ipc_rmid = 0
    ctypes.CDLL(None).shmctl(segment, ipc_rmid, None)


def members(data: Path) -> list[int]:
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


def children_of(pid: int) -> list[int]:
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
