"""How a keeper is, at one moment, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass

from fsm.machine.spec import State


@dataclass(frozen=True, slots=True)
class Health:
    """How a keeper is, at one moment."""

    slot: str
    state: State
    for_seconds: float
    """How long it has been in this state."""
    session_open: bool
    lock_held: bool
    attempt: int | None
    """Which failure of its kind it deals with; None where there is none."""
    next_try: float | None
    """Seconds until the next try; None where none is due."""
    error_class: str | None
    reason: str | None
    remedy: str | None
    holder: str | None
    """Who holds the lock or the slot, where that is what it waits for."""
    flushed: int
    """LSN up to which the server may forget."""
    waiting_bytes: int
    """What has arrived and waits for the host."""

    def why(self) -> str:
        """Say in a sentence which state it is in, why, and until when."""
        match self.state:
            case "Idle":
                return "Idle: nothing is open; start() begins."
            case "BackingOff":
                return f"BackingOff, {self.next_try or 0:.1f} s more: {self._trouble()}"
            case "Failed":
                return f"Failed: {self._trouble()} {self.remedy or ''}".strip()
            case _:
                return f"{self.state} for {self.for_seconds:.1f} s: {self._doing()}"

    def _doing(self) -> str:
        if self.state == "Streaming":
            return f"slot '{self.slot}' is ours{self._past_trouble()}."
        if self.state == "Acquiring":
            return f"the lock is ours; slot '{self.slot}' is being inspected and started."
        if not self.session_open:
            return "a session is opening."
        if self.holder is not None:
            return f"the lock of slot '{self.slot}' is held by {self.holder}."
        return f"the lock of slot '{self.slot}' was asked for."

    def _past_trouble(self) -> str:
        if self.error_class is None:
            return ""
        failures = "1 failure" if self.attempt == 1 else f"{self.attempt} failures"
        verb = "is" if self.attempt == 1 else "are"
        return f"; {failures} ({self.error_class}) {verb} not yet forgotten"

    def _trouble(self) -> str:
        reason = (self.reason or "").rstrip(".")
        return f"attempt {self.attempt}, {self.error_class}: {reason}."
