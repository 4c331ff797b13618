"""What the handlers of both keepers have stored, read from their files as they grow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


class Ledger:
    """Reads one handler's file.

    Args:
        path: an id a line; need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stored: Counter[int] = Counter()
        self._offset = 0

    def read_on(self) -> None:
        """Take in what was added since the last time; an unfinished line waits for its end."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        self.stored.update(map(int, whole.split()))
