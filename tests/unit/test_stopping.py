from __future__ import annotations

import pytest

from fsm.postgres.stopping import GAP, REPLY_INTERVAL, RUN, StopWatch

AT = 0x1_0000_0000


def _run(
    watch: StopWatch, *, gap: float, seconds: float, position: int = AT, begin: float = 100.0
) -> list[bool]:
    """Note keepalives every ``gap`` seconds; give what each was taken for."""
    count = int(seconds / gap + 1e-9) + 1
    return [watch.note(position, begin + number * gap) for number in range(count)]


def test_a_run_of_requests_at_one_position_is_a_server_that_stops() -> None:
    found = _run(StopWatch(), gap=0.1, seconds=RUN)
    assert found[-1]
    assert not any(found[:-1])


def test_a_run_that_is_too_short_is_none() -> None:
    assert not any(_run(StopWatch(), gap=0.1, seconds=RUN - 0.1))


def test_a_server_that_fears_for_its_timeout_is_not_stopping() -> None:
    # wal_sender_timeout of 1 s, the shortest lease: one request each half of it
    assert not any(_run(StopWatch(), gap=0.5, seconds=60))


def test_a_gap_ends_a_run() -> None:
    watch = StopWatch()
    _run(watch, gap=0.1, seconds=0.9)
    assert not any(_run(watch, gap=0.1, seconds=0.9, begin=100.9 + GAP + 0.01))


def test_a_server_that_still_sends_is_not_stopping() -> None:
    watch = StopWatch()
    assert not any(watch.note(AT + number, 100 + number * 0.1) for number in range(100))


def test_the_first_request_is_answered_at_once() -> None:
    watch = StopWatch()
    watch.note(AT, 100.0)
    assert watch.reply_in(100.0) == 0


def test_a_moving_position_is_answered_at_once_each_time() -> None:
    watch = StopWatch()
    for number in range(20):
        now = 100 + number * 0.001
        watch.note(AT + number, now)
        assert watch.reply_in(now) == 0


def test_replies_at_one_position_are_at_most_ten_a_second() -> None:
    watch = StopWatch()
    now, replies = 100.0, 0
    while now < 101.0:
        watch.note(AT, now)
        now += watch.reply_in(now) + 0.000_1
        replies += 1
    assert replies <= 1 / REPLY_INTERVAL + 1


def test_a_reply_that_is_due_anyway_is_not_put_off() -> None:
    watch = StopWatch()
    watch.note(AT, 100.0)
    watch.reply_in(100.0)
    watch.note(AT, 100.0 + REPLY_INTERVAL)
    assert watch.reply_in(100.0 + REPLY_INTERVAL) == pytest.approx(0, abs=1e-9)
