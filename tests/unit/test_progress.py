from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.runtime.progress import Progress


def _with(*commit_lsns: int) -> Progress:
    progress = Progress()
    for commit_lsn in commit_lsns:
        progress.hand_over(commit_lsn)
    return progress


def test_nothing_may_be_confirmed_at_first() -> None:
    assert Progress().flushed == 0
    assert Progress().outstanding == 0


def test_an_acknowledged_transaction_may_be_confirmed_to_its_end() -> None:
    progress = _with(100)
    progress.acknowledge(100, 110)
    assert progress.flushed == 110
    assert progress.outstanding == 0


def test_a_transaction_behind_one_that_is_open_is_not_confirmed() -> None:
    progress = _with(100, 200, 300)
    progress.acknowledge(200, 210)
    assert progress.flushed == 0
    assert progress.outstanding == 3
    progress.acknowledge(100, 110)
    assert progress.flushed == 210
    assert progress.outstanding == 1


def test_an_acknowledgement_that_waits_for_earlier_ones_is_remembered() -> None:
    progress = _with(100, 200)
    progress.acknowledge(200, 210)
    assert progress.is_acknowledged(200)
    assert not progress.is_acknowledged(100)


def test_what_is_flushed_counts_as_acknowledged() -> None:
    progress = _with(100)
    progress.acknowledge(100, 110)
    assert progress.is_acknowledged(100)
    assert progress.is_acknowledged(109)
    assert not progress.is_acknowledged(110)


def test_an_acknowledgement_given_twice_changes_nothing() -> None:
    progress = _with(100, 200)
    progress.acknowledge(100, 110)
    progress.acknowledge(100, 110)
    assert progress.flushed == 110
    assert progress.outstanding == 1


def test_a_transaction_handed_over_again_keeps_its_acknowledgement() -> None:
    progress = _with(100, 200)
    progress.acknowledge(200, 210)
    progress.hand_over(200)
    progress.acknowledge(100, 110)
    assert progress.flushed == 210


def test_a_flushed_transaction_is_not_outstanding_when_it_is_seen_again() -> None:
    progress = _with(100)
    progress.acknowledge(100, 110)
    progress.hand_over(100)
    assert progress.outstanding == 0


def test_a_keepalive_position_is_confirmed_while_nothing_is_outstanding() -> None:
    progress = Progress()
    progress.advance_idle(500)
    assert progress.flushed == 500


def test_a_keepalive_position_is_not_confirmed_while_something_is_outstanding() -> None:
    progress = _with(100)
    progress.advance_idle(500)
    assert progress.flushed == 0


def test_a_keepalive_position_never_takes_back_what_was_confirmed() -> None:
    progress = Progress()
    progress.advance_idle(500)
    progress.advance_idle(400)
    assert progress.flushed == 500


@pytest.mark.parametrize(("flushed", "confirmed"), [(0, 300), (300, 300), (300, 200)])
def test_a_slot_that_stands_no_further_than_we_confirmed_was_not_moved(
    flushed: int, confirmed: int
) -> None:
    progress = Progress()
    progress.advance_idle(flushed)
    assert progress.adopt(confirmed) is False
    assert progress.flushed == max(flushed, confirmed)


def test_a_slot_beyond_what_we_confirmed_was_moved_by_another() -> None:
    progress = Progress()
    progress.advance_idle(300)
    assert progress.adopt(301) is True
    assert progress.flushed == 301


def test_what_another_consumer_confirmed_is_not_outstanding_here() -> None:
    progress = Progress()
    progress.advance_idle(50)
    for commit_lsn in (100, 200):
        progress.hand_over(commit_lsn)
    progress.adopt(110)
    assert progress.outstanding == 1
    progress.acknowledge(200, 210)
    assert progress.flushed == 210


def test_what_became_contiguous_by_another_consumers_confirmation_is_confirmed() -> None:
    progress = Progress()
    progress.advance_idle(50)
    for commit_lsn in (100, 200):
        progress.hand_over(commit_lsn)
    progress.acknowledge(200, 210)
    progress.adopt(110)
    assert progress.flushed == 210
    assert progress.outstanding == 0


@given(st.permutations(range(8)), st.integers(0, 8))
def test_only_the_contiguous_prefix_of_any_acknowledgements_is_confirmed(
    order: list[int], count: int
) -> None:
    progress = _with(*(100 * (number + 1) for number in range(8)))
    done = set(order[:count])
    for number in order[:count]:
        progress.acknowledge(100 * (number + 1), 100 * (number + 1) + 10)
    prefix = next((number for number in range(8) if number not in done), 8)
    assert progress.flushed == (100 * prefix + 10 if prefix else 0)
