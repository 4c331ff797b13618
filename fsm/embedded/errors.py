"""The error of throw-away servers."""

from __future__ import annotations

from fsm.errors import SlotkeeperError


class EmbeddedError(SlotkeeperError):
    """The throw-away server did not start, stop or answer; the message ends with its log."""
