"""What an error means, as a classifier says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

ErrorAction: TypeAlias = Literal["retry", "retry_long", "wait", "fail", "stop", "ignore"]


class Verdict(Protocol):
    """Class and action of an error, with words for people."""

    @property
    def error_class(self) -> str:
        """One of the classes of states.yaml."""

    @property
    def action(self) -> ErrorAction:
        """The classifier's event is ``error_`` and this; ``ignore`` sends none."""

    @property
    def reason(self) -> str:
        """What was found, in one sentence."""

    @property
    def remedy(self) -> str:
        """What to do, in one sentence."""

    @property
    def rule(self) -> str:
        """Which rule decided."""


Classify: TypeAlias = Callable[[Exception], Verdict]


@dataclass(frozen=True, slots=True)
class Trouble:
    """An error and what it means."""

    error: Exception
    verdict: Verdict
