"""How long to wait after the n-th failure.

The words are those that retry libraries share; the jitter forms are those of "Exponential Backoff
And Jitter" (AWS Architecture Blog). The random source is the caller's.
"""

from __future__ import annotations

from random import Random
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Jitter: TypeAlias = Literal["none", "full", "equal", "decorrelated"]

Seconds: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Policy(BaseModel):
    """One backoff policy; all times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    initial_delay: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    max_delay: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    jitter: Jitter = "full"
    floor: Seconds = 0.1
    """No delay is shorter."""
    max_retries: Annotated[int, Field(ge=0)] | None = None
    """Tries after the first one; None is unlimited."""
    max_elapsed: Seconds | None = None
    """Seconds that may be spent on errors of one class; None is unlimited."""

    @property
    def is_limited(self) -> bool:
        """Does it allow only so many tries, or so much time?"""
        return self.max_retries is not None or self.max_elapsed is not None

    def is_spent(self, failures: int, elapsed: float) -> bool:
        """Is no further try allowed, after so many failures and ``elapsed`` seconds on them?"""
        if self.max_retries is not None and failures > self.max_retries:
            return True
        return self.max_elapsed is not None and elapsed >= self.max_elapsed

    def ceiling(self, failures: int) -> float:
        """Give the delay after ``failures`` (1 or more) failures before jitter, in seconds."""
        try:
            grown = self.initial_delay * self.factor ** (failures - 1)
        except OverflowError:
            return self.max_delay
        return min(self.max_delay, grown)

    def delay(self, failures: int, previous: float | None, random: Random) -> float:
        """Draw the delay after ``failures`` (1 or more) failures, in seconds.

        Args:
            failures: how many there were, this one included.
            previous: the last delay drawn, or None; only ``decorrelated`` looks at it.
            random: where jitter comes from.
        """
        return max(self.floor, self._jittered(failures, previous, random))

    def _jittered(self, failures: int, previous: float | None, random: Random) -> float:
        ceiling = self.ceiling(failures)
        match self.jitter:
            case "none":
                return ceiling
            case "full":
                return random.uniform(0, ceiling)
            case "equal":
                return ceiling / 2 + random.uniform(0, ceiling / 2)
            case "decorrelated":
                base = self.initial_delay if previous is None else previous
                return min(self.max_delay, random.uniform(self.initial_delay, base * 3))

    def shortest(self) -> float:
        """Give the shortest delay that can ever be drawn, in seconds."""
        lowest = {
            "none": self.ceiling(1),
            "full": 0.0,
            "equal": self.ceiling(1) / 2,
            "decorrelated": min(self.max_delay, self.initial_delay),
        }[self.jitter]
        return max(self.floor, lowest)
