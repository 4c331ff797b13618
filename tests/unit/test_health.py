from __future__ import annotations

from dataclasses import replace

import pytest

from fsm.health import Health
from fsm.machine.spec import STATES, State

WELL = Health(
    slot="orders",
    state="Streaming",
    for_seconds=12.34,
    session_open=True,
    lock_held=True,
    attempt=None,
    next_try=None,
    error_class=None,
    reason=None,
    remedy=None,
    holder=None,
    flushed=0x1_0000_0000,
    waiting_bytes=0,
)
ILL = replace(
    WELL,
    attempt=4,
    next_try=8.31,
    error_class="contention",
    reason="slot 'orders' is held by pid 712, app 'etl'; the lock is ours",
    remedy="Stop pid 712.",
)


def test_idle() -> None:
    assert replace(WELL, state="Idle").why() == "Idle: nothing is open; start() begins."


def test_opening() -> None:
    health = replace(WELL, state="Locking", session_open=False, lock_held=False)
    assert health.why() == "Locking for 12.3 s: a session is opening."


def test_asking_for_the_lock() -> None:
    health = replace(WELL, state="Locking", lock_held=False)
    assert health.why() == "Locking for 12.3 s: the lock of slot 'orders' was asked for."


def test_waiting_for_the_lock() -> None:
    health = replace(WELL, state="Locking", lock_held=False, holder="pid 712, app 'etl'")
    assert health.why() == (
        "Locking for 12.3 s: the lock of slot 'orders' is held by pid 712, app 'etl'."
    )


def test_acquiring() -> None:
    assert replace(WELL, state="Acquiring").why() == (
        "Acquiring for 12.3 s: the lock is ours; slot 'orders' is being inspected and started."
    )


def test_streaming() -> None:
    assert WELL.why() == "Streaming for 12.3 s: slot 'orders' is ours."


def test_streaming_after_trouble() -> None:
    assert replace(ILL, state="Streaming", next_try=None).why() == (
        "Streaming for 12.3 s: slot 'orders' is ours; 4 failures (contention) are not yet "
        "forgotten."
    )


def test_streaming_after_one_failure_counts_it_in_the_singular() -> None:
    assert (
        replace(ILL, state="Streaming", attempt=1)
        .why()
        .endswith("; 1 failure (contention) is not yet forgotten.")
    )


def test_backing_off() -> None:
    assert replace(ILL, state="BackingOff").why() == (
        "BackingOff, 8.3 s more: attempt 4, contention: slot 'orders' is held by pid 712, app "
        "'etl'; the lock is ours."
    )


def test_failed() -> None:
    assert replace(ILL, state="Failed", next_try=None).why() == (
        "Failed: attempt 4, contention: slot 'orders' is held by pid 712, app 'etl'; the lock is "
        "ours. Stop pid 712."
    )


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("health", [WELL, ILL], ids=["well", "ill"])
def test_every_state_is_one_sentence_that_begins_with_its_name(
    state: State, health: Health
) -> None:
    why = replace(health, state=state).why()
    assert why.startswith(state)
    assert why.endswith(".")
    assert ".." not in why
    assert "\n" not in why


def test_health_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        WELL.slot = "another"  # type: ignore[misc]  # that is what is tried
