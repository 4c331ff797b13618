"""The settings of a server, in a file that its postgresql.conf includes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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

_CONFIG = "slotkeeper.conf"


def include_settings(data: Path) -> None:
    """Make the cluster's postgresql.conf read our file, where it does not yet."""
    config = data / "postgresql.conf"
    include = f"include_if_exists '{_CONFIG}'\n"
    if include not in config.read_text():
        with config.open("a") as file:
            file.write(include)


def write_settings(data: Path, settings: Mapping[str, str]) -> None:
    """Write our file anew; it acts at the next start."""
    lines = (f"{name} = {_quoted(value)}\n" for name, value in settings.items())
    (data / _CONFIG).write_text("".join(lines))


def _quoted(value: str) -> str:
    """A postgresql.conf value."""
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"
