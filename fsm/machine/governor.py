"""The governor: a limit on attempts that no edit of states.yaml can lift."""

from __future__ import annotations


class Governor:
    """A token bucket.

    Args:
        rate: attempts a second that it allows in the long run.
        burst: attempts that it allows at once. A failover that shows several classes of error, each
            with a backoff that only begins, was seen to make up to 8 in quick succession.
    """

    def __init__(self, rate: float = 1.0, burst: int = 10) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError("a governor needs a rate above 0 and a burst of at least 1")
        self.rate = rate
        self.burst = burst
        self.interventions = 0
        self._tokens = float(burst)
        self._refilled: float | None = None

    def take(self, now: float) -> bool:
        """Take one token at ``now`` (seconds, monotonic); False where the bucket is empty."""
        if self._refilled is not None:
            gained = max(0.0, now - self._refilled) * self.rate
            self._tokens = min(float(self.burst), self._tokens + gained)
        self._refilled = now
        if self._tokens < 1:
            self.interventions += 1
            return False
        self._tokens -= 1
        return True

    @property
    def pause(self) -> float:
        """Seconds until one token has come back, at the latest."""
        return 1 / self.rate
