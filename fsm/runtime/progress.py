"""What may be confirmed to the server: only what the host said is safe, without gaps."""

from __future__ import annotations


class Progress:
    """Tracks transactions in the host's hands, by commit LSN, and the LSN that may be confirmed.

    ``flushed`` is that LSN: everything before it is the server's to forget.
    """

    def __init__(self) -> None:
        self.flushed = 0
        self._outstanding: dict[int, int | None] = {}

    @property
    def outstanding(self) -> int:
        """How many transactions wait for an acknowledgement."""
        return len(self._outstanding)

    def hand_over(self, commit_lsn: int) -> None:
        """Note that the host has this transaction now."""
        if commit_lsn >= self.flushed:
            self._outstanding.setdefault(commit_lsn, None)

    def acknowledge(self, commit_lsn: int, end_lsn: int) -> None:
        """Note that the host is done with it; what is contiguous becomes ``flushed``."""
        if commit_lsn < self.flushed:
            return
        self._outstanding[commit_lsn] = end_lsn
        self._confirm_contiguous()

    def _confirm_contiguous(self) -> None:
        for first in sorted(self._outstanding):
            end = self._outstanding[first]
            if end is None:
                return
            self.flushed = max(self.flushed, end)
            del self._outstanding[first]

    def forget_outstanding(self) -> None:
        """Forget what the host has: it is of a history that the server no longer follows."""
        self._outstanding.clear()

    def is_outstanding(self, commit_lsn: int) -> bool:
        """Does the host have this transaction, and are not all up to it acknowledged?"""
        return commit_lsn in self._outstanding

    def is_acknowledged(self, commit_lsn: int) -> bool:
        """Did the host say that it is done with this transaction?"""
        if commit_lsn < self.flushed:
            return True
        return self._outstanding.get(commit_lsn) is not None

    def advance_idle(self, wal_end: int) -> None:
        """Confirm a keepalive's position; only right while nothing is outstanding or on its way."""
        if not self._outstanding:
            self.flushed = max(self.flushed, wal_end)

    def adopt(self, confirmed_flush: int) -> bool:
        """Take the slot's own position when a session begins.

        Returns:
            True where the slot stands beyond what we ever confirmed: someone else moved it.
        """
        moved_by_another = confirmed_flush > self.flushed > 0
        self.flushed = max(self.flushed, confirmed_flush)
        for commit_lsn in [lsn for lsn in self._outstanding if lsn < confirmed_flush]:
            del self._outstanding[commit_lsn]
        self._confirm_contiguous()
        return moved_by_another
