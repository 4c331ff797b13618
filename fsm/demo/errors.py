"""What the demo raises."""

from __future__ import annotations

from fsm.errors import SlotkeeperError


class DemoError(SlotkeeperError):
    """A process of the demo failed, or what was to happen did not happen in time."""
