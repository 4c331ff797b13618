"""Backoff policies: how long the n-th wait is, and when a budget is spent."""

from __future__ import annotations

import math
from random import Random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fsm.machine.backoff import Jitter, Policy
from tests.support.world import dice, machine

JITTERS: tuple[Jitter, ...] = get_args(Jitter)

policies = st.builds(
    lambda initial, grows, factor, jitter, floor: Policy(
        initial_delay=initial,
        max_delay=initial * grows,
        factor=factor,
        jitter=jitter,
        floor=floor,
    ),
    st.floats(0.001, 1000),
    st.floats(1, 1000),
    st.floats(1, 10),
    st.sampled_from(JITTERS),
    st.floats(0, 0.5),
)


def policy(jitter: Jitter = "none", **fields: float | None) -> Policy:
    settings = {"initial_delay": 1.0, "factor": 2.0, "max_delay": 60.0, "floor": 0.0, **fields}
    return Policy.model_validate({"jitter": jitter, **settings})


class Always(Random):
    """Draws the same part of every range."""

    def __init__(self, part: float) -> None:
        super().__init__(0)
        self.part = part

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.part


def test_the_delay_grows_by_the_factor_up_to_the_longest() -> None:
    delays = [policy(max_delay=10.0).delay(n, None, dice(1)) for n in range(1, 7)]
    assert delays == [1, 2, 4, 8, 10, 10]


def test_a_factor_of_one_is_a_constant_delay() -> None:
    assert {policy(factor=1.0).delay(n, None, dice(1)) for n in (1, 2, 100)} == {1.0}


@pytest.mark.parametrize(("part", "expected"), [(0.0, 0.0), (0.25, 2.0), (1.0, 8.0)])
def test_full_jitter_draws_from_all_of_the_delay(part: float, expected: float) -> None:
    assert policy("full").delay(4, None, Always(part)) == expected


@pytest.mark.parametrize(("part", "expected"), [(0.0, 4.0), (0.25, 5.0), (1.0, 8.0)])
def test_equal_jitter_draws_from_the_upper_half(part: float, expected: float) -> None:
    assert policy("equal").delay(4, None, Always(part)) == expected


@pytest.mark.parametrize(
    ("previous", "part", "expected"), [(None, 1.0, 3.0), (5.0, 1.0, 15.0), (5.0, 0.0, 1.0)]
)
def test_decorrelated_jitter_draws_up_to_three_times_the_last_delay(
    previous: float | None, part: float, expected: float
) -> None:
    assert policy("decorrelated").delay(9, previous, Always(part)) == expected


def test_no_jitter_lifts_the_longest_delay() -> None:
    for jitter in JITTERS:
        assert policy(jitter, max_delay=7.0).delay(50, 7.0, Always(1.0)) == 7.0


def test_no_delay_is_under_the_floor() -> None:
    for jitter in ("full", "none"):
        short = Policy(initial_delay=0.01, max_delay=0.01, jitter=jitter, floor=0.1)
        assert short.delay(1, None, Always(0.0)) == 0.1


@given(policies, st.integers(1, 5000), st.integers())
def test_every_delay_lies_between_the_shortest_and_the_longest(
    drawn: Policy, failures: int, seed: int
) -> None:
    delay = drawn.delay(failures, None, dice(seed))
    assert drawn.shortest() * (1 - 1e-9) <= delay <= max(drawn.floor, drawn.max_delay) * (1 + 1e-9)


@given(policies, st.integers())
def test_decorrelated_delays_stay_in_bounds_when_each_feeds_the_next(
    drawn: Policy, seed: int
) -> None:
    random, previous = dice(seed), None
    for failures in range(1, 50):
        previous = drawn.delay(failures, previous, random)
        assert drawn.shortest() * (1 - 1e-9) <= previous
        assert previous <= max(drawn.floor, drawn.max_delay) * (1 + 1e-9)


def test_the_shortest_delay_is_the_one_that_the_least_luck_draws() -> None:
    for jitter in JITTERS:
        for floor in (0.0, 0.1, 2.0):
            one = policy(jitter, floor=floor)
            assert one.shortest() == one.delay(1, None, Always(0.0))


def test_the_same_random_source_draws_the_same_delays() -> None:
    def draw(seed: int) -> list[float]:
        random = dice(seed)
        return [policy("full").delay(failures, None, random) for failures in range(1, 9)]

    assert draw(7) == draw(7) != draw(8)


def test_a_number_of_failures_beyond_any_float_is_the_longest_delay() -> None:
    assert policy(factor=10.0).delay(10_000, None, dice(1)) == 60.0


def test_the_first_try_is_no_retry() -> None:
    three = policy(max_retries=3)
    assert [three.is_spent(failures, 0.0) for failures in (1, 2, 3, 4)] == [False] * 3 + [True]
    assert policy(max_retries=0).is_spent(1, 0.0)


def test_a_budget_of_seconds_is_spent_when_they_are() -> None:
    minute = policy(max_elapsed=60.0)
    assert [minute.is_spent(9, elapsed) for elapsed in (0.0, 59.9, 60.0)] == [False, False, True]


def test_null_is_unlimited() -> None:
    assert not policy().is_spent(10**9, math.inf)
    assert not policy().is_limited
    assert policy(max_retries=1).is_limited
    assert policy(max_elapsed=1.0).is_limited


@pytest.mark.parametrize(
    "fields",
    [
        {"initial_delay": 0.0},
        {"initial_delay": -1.0},
        {"initial_delay": math.nan},
        {"max_delay": math.inf},
        {"factor": 0.5},
        {"floor": -0.1},
        {"max_retries": -1},
        {"max_elapsed": -1.0},
        {"max_elapsed": True},
        {"patience": 1.0},
    ],
)
def test_a_policy_that_means_nothing_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Policy.model_validate({"initial_delay": 1.0, "max_delay": 60.0, **fields})


def test_what_a_class_does_not_say_is_the_policys_own() -> None:
    retry = machine().policies["error_retry"]
    plain = retry.of_class("transient_network")
    starting = retry.of_class("server_starting_or_stopping")
    assert plain == retry.of_class("no such class")
    assert starting == plain.model_copy(update={"max_delay": starting.max_delay})
    assert starting.max_delay < plain.max_delay


def test_a_class_can_lift_a_limit_with_null() -> None:
    long = machine().policies["error_retry_long"]
    assert long.max_elapsed is not None
    assert long.of_class("contention").max_elapsed is None


def test_no_shipped_delay_can_be_shorter_than_a_tenth_of_a_second() -> None:
    spec = machine()
    shortest = {
        (name, error_class): policy.of_class(error_class).shortest()
        for name, policy in spec.policies.items()
        for error_class in spec.classes
    }
    assert min(shortest.values()) >= 0.1
