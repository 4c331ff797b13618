"""What a postmaster writes into its postmaster.pid: is it ready, and which is its shared memory."""

from __future__ import annotations

from pathlib import Path


def says_ready(data: Path, pid: int) -> bool:
    """Line 8 of postmaster.pid is the server's status; see LOCK_FILE_LINE_PM_STATUS."""
    lines = _lines(data)
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"  # noqa: PLR2004 - the line's number


def shared_memory_of(data: Path, pid: int) -> int | None:
    """The id of the System V segment that a killed postmaster leaves, if it is known.

    Line 7 of postmaster.pid holds its key and id (LOCK_FILE_LINE_SHMEM_KEY); the file itself
    is there only after an end that was not orderly.
    """
    lines = _lines(data)
    if len(lines) < 7 or lines[0] != str(pid):  # noqa: PLR2004 - the line's number
        return None
    ids = lines[6].split()
    return int(ids[1]) if len(ids) == 2 else None  # noqa: PLR2004 - key and id


def _lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text(errors="replace").splitlines()
    except OSError:
        return []
