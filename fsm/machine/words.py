"""Times and policies of a machine, in words that fit on a diagram and into a table."""

from __future__ import annotations

from typing import Final

from fsm.machine.backoff import Policy
from fsm.machine.spec import OfLease, Timer

SHOWN: Final = 3
"""Delays that are written out before the longest one."""
_MINUTE: Final = 60
_HOUR: Final = 3600


def duration(seconds: float) -> str:
    """Write seconds as ``90 s``, ``5 min`` or ``1 h``, whichever is whole."""
    for unit, length in (("h", _HOUR), ("min", _MINUTE)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def length(timer: Timer) -> str | None:
    """Write when a timer without a policy fires; None where it is off."""
    if timer.after is None:
        return None
    if isinstance(timer.after, OfLease):
        base = f"{timer.after.of_lease:.0%} of the lease"
    else:
        base = f"{timer.after:g} s"
    patience = f" + {timer.answer_within:g} s" if timer.answer_within else ""
    return f"{'every' if timer.repeat else 'after'} {base}{patience}"


def growth(policy: Policy) -> str:
    """Write the delays as ``up to 1, 2, 4 .. 60 s``; ``up to`` stands for jitter."""
    if policy.jitter == "decorrelated":
        return f"{policy.initial_delay:g} to {policy.max_delay:g} s"
    first, last = _first_delays(policy), _last_delay(policy)
    written = ", ".join(f"{delay:g}" for delay in first)
    if last not in first:
        written += f" .. {last:g}"
    return f"{written} s" if policy.jitter == "none" else f"up to {written} s"


def budget(policy: Policy) -> str:
    """Write what may be spent, as ``3 retries``, ``1 h`` or ``10 retries or 5 min``."""
    limits = []
    if policy.max_retries is not None:
        limits.append(f"{policy.max_retries} {'retry' if policy.max_retries == 1 else 'retries'}")
    if policy.max_elapsed is not None:
        limits.append(duration(policy.max_elapsed))
    return " or ".join(limits) or "no limit"


def waiting(policy: Policy, ending: str) -> str:
    """Write delays and budget as ``up to 1, 2, 4 .. 60 s; 10 retries, then Failed``.

    Args:
        policy: of one class of errors.
        ending: the state in which a spent budget ends.
    """
    if not policy.is_limited:
        return f"{growth(policy)}, without end"
    if policy.max_retries == 0:
        return f"{ending} at once"
    if policy.max_elapsed is None and len(_first_delays(policy)) == policy.max_retries:
        return f"{growth(policy)}, then {ending}"
    return f"{growth(policy)}; {budget(policy)}, then {ending}"


def _first_delays(policy: Policy) -> list[float]:
    """Give up to three different delays, before jitter."""
    retries = SHOWN if policy.max_retries is None else min(SHOWN, max(1, policy.max_retries))
    return list(dict.fromkeys(policy.ceiling(number) for number in range(1, retries + 1)))


def _last_delay(policy: Policy) -> float:
    """Give the longest delay, before jitter, that the policy comes to."""
    if policy.max_retries is not None:
        return policy.ceiling(max(1, policy.max_retries))
    return policy.max_delay if policy.factor > 1 else policy.ceiling(1)
