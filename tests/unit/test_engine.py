"""The engine: visits, facts, timers, failures and budgets; and the governor that holds it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from fsm.machine.engine import SHORTEST, Engine, Happening, Outcome, SetTimer, Step, Table
from fsm.machine.governor import Governor
from fsm.machine.spec import STATES, Spec
from tests.support.world import (
    LEASE,
    Answer,
    Answers,
    World,
    dice,
    engine,
    machine,
    well,
    with_row,
    without_limit,
)

HOUR = 3600


class Script:
    """An engine with a hand on its clock: events of the present visit, one after the other."""

    def __init__(self, made: Engine) -> None:
        self.engine = made
        self.now = 0.0

    def send(self, name: str, error_class: str | None = None, *, after: float = 0.0) -> Step:
        self.now += after
        spec = self.engine.spec.events.get(name)
        visit = None if spec is not None and spec.sender == "host" else self.engine.visit
        return self.engine.handle(Happening(name, visit, error_class), self.now)

    def to_locking(self) -> Step:
        return self.send("start")

    def to_acquiring(self) -> Step:
        self.to_locking()
        self.send("session_opened")
        return self.send("lock_granted")

    def to_streaming(self) -> Step:
        self.to_acquiring()
        return self.on_to_streaming()

    def on_to_streaming(self) -> Step:
        self.send("slot_found")
        return self.send("stream_started")

    def fail(self, trigger: str, error_class: str, *, after: float = 0.0) -> Step:
        """Fail in Locking, and come back to it when the backoff is over."""
        step = self.send(trigger, error_class, after=after)
        if step.failure is not None and step.failure.delay is not None:
            self.send("backoff_elapsed", after=step.failure.delay)
        return step


def script(spec: Spec | None = None, **options: Any) -> Script:
    return Script(engine(spec, governor=without_limit(), **options))


def lengths(step: Step) -> dict[str, SetTimer]:
    return {setting.name: setting for setting in step.set_timers}


# Visits.


def test_it_begins_idle_and_knows_nothing() -> None:
    one = engine()
    assert (one.state, one.visit, one.facts, one.failure) == ("Idle", 0, frozenset(), None)


def test_every_entry_of_a_state_is_a_new_visit() -> None:
    run = script()
    assert run.to_locking().visit == 1
    assert run.send("session_opened").visit == 1
    assert run.send("lock_granted").visit == 2
    assert run.send("error_wait", "contention").visit == 3
    assert run.send("retry_now").visit == 4


def test_coming_back_to_the_state_it_is_in_is_a_new_visit_too() -> None:
    run = script(with_row("ask_for_lock_again", dest="Locking", restart=()))
    run.to_locking()
    run.send("session_opened")
    again = run.send("slice_ended")
    assert (again.outcome, again.visit, run.engine.state) == (Outcome.MOVED, 2, "Locking")


@pytest.mark.parametrize("name", ["session_opened", "connect_timed_out", "error_fail"])
def test_what_an_earlier_visit_asked_for_is_dropped_and_counted(name: str) -> None:
    run = script()
    run.to_acquiring()
    before = (run.engine.state, run.engine.visit, run.engine.facts)
    late = run.engine.handle(Happening(name, visit=1), 0.0)
    assert (late.outcome, late.actions, late.set_timers) == (Outcome.LATE, (), ())
    assert (run.engine.state, run.engine.visit, run.engine.facts) == before
    assert (run.engine.late, run.engine.failure) == (1, None)


def test_what_a_visit_to_come_would_ask_for_is_dropped_too() -> None:
    run = script()
    run.to_locking()
    assert run.engine.handle(Happening("session_opened", visit=2), 0.0).outcome is Outcome.LATE


def test_the_hosts_events_belong_to_no_visit() -> None:
    run = script()
    run.to_streaming()
    assert run.engine.handle(Happening("stop"), 0.0).dest == "Idle"
    assert run.engine.late == 0


def test_every_pair_that_is_ignored_changes_nothing() -> None:
    ways: dict[str, Callable[[Script], object]] = {
        "Idle": lambda _: None,
        "Locking": Script.to_locking,
        "Acquiring": Script.to_acquiring,
        "Streaming": Script.to_streaming,
        "BackingOff": lambda run: (run.to_locking(), run.send("error_retry")),
        "Failed": lambda run: (run.to_locking(), run.send("error_fail")),
    }
    assert set(ways) == set(STATES)
    for state, way in ways.items():
        for name in machine().states[state].ignore:  # type: ignore[index]  # one of the six
            run = script()
            way(run)
            before = (run.engine.state, run.engine.visit, run.engine.facts, run.engine.failure)
            step = run.send(name)
            assert (step.outcome, step.actions) == (Outcome.IGNORED, ()), (state, name)
            after = (run.engine.state, run.engine.visit, run.engine.facts, run.engine.failure)
            assert after == before


def test_an_event_that_nobody_declared_is_ignored() -> None:
    assert script().send("lunch").outcome is Outcome.IGNORED


def test_a_step_names_its_row_and_says_what_is_quiet() -> None:
    run = script()
    assert (run.to_locking().row, run.engine.state) == ("begin", "Locking")
    run.send("session_opened")
    run.send("lock_granted")
    run.on_to_streaming()
    ticked = run.send("status_due")
    assert (ticked.row, ticked.quiet, ticked.actions) == ("report_status", True, ("send_status",))
    assert not run.send("work_shown").quiet


# Facts.


def test_events_set_facts_and_closing_clears_them() -> None:
    run = script()
    held = []
    for name in ("start", "session_opened", "lock_granted", "slot_found", "stream_started"):
        run.send(name)
        held.append(set(run.engine.facts))
    opened, locked = {"session_open"}, {"session_open", "lock_held"}
    checked = {*locked, "slot_checked"}
    assert held == [set(), opened, locked, checked, checked]
    run.send("work_shown")
    assert run.engine.facts == {*checked, "work_proven"}
    run.send("error_retry", "transient_network")
    assert run.engine.facts == frozenset()


def test_a_refused_start_keeps_session_and_lock() -> None:
    run = script()
    run.to_acquiring()
    run.send("slot_found")
    run.send("error_wait", "contention")
    assert run.engine.facts >= {"session_open", "lock_held"}


@pytest.mark.parametrize(("held", "row"), [(True, "acquire_now"), (False, "lock_now")])
def test_a_condition_picks_the_row(held: bool, row: str) -> None:  # noqa: FBT001  (a case)
    run = script()
    if held:
        run.to_acquiring()
        run.send("error_wait", "contention")
    else:
        run.to_locking()
        run.send("error_retry", "transient_network")
    assert run.send("retry_now").row == row


# Timers.


def test_a_state_sets_its_timers_on_entry_and_cancels_them_on_leaving() -> None:
    run = script()
    run.to_acquiring()
    entered = run.send("slot_found")
    assert entered.set_timers == ()
    left = run.send("stream_started")
    assert set(left.cancel_timers) == {"acquire_timeout", "waiting_notice"}
    assert set(lengths(left)) == {"status_interval", "silence", "stable_after"}


def test_a_row_that_stays_lets_timers_run_on() -> None:
    run = script()
    run.to_acquiring()
    for name in ("slot_found", "waiting_noticed"):
        step = run.send(name, after=3)
        assert (step.outcome, step.set_timers, step.cancel_timers) == (Outcome.STAYED, (), ())


def test_a_timer_follows_its_condition_within_a_visit() -> None:
    run = script()
    assert set(lengths(run.to_locking())) == {"connect_timeout"}
    opened = run.send("session_opened")
    assert opened.cancel_timers == ("connect_timeout",)
    assert set(lengths(opened)) == {"lock_slice", "waiting_notice"}


def test_a_timer_whose_condition_ends_in_a_row_that_stays_is_cancelled() -> None:
    run = script()
    run.to_streaming()
    assert run.send("work_shown").cancel_timers == ("stable_after",)


def test_restart_sets_one_timer_afresh_and_leaves_the_others() -> None:
    run = script()
    run.to_locking()
    run.send("session_opened")
    again = run.send("slice_ended", after=25)
    assert again.cancel_timers == ("lock_slice",)
    assert set(lengths(again)) == {"lock_slice"}


def test_a_slice_is_shortened_by_chance_and_waits_for_its_answer() -> None:
    seen = set()
    for seed in range(20):
        run = script(seed=seed)
        run.to_locking()
        slice_ = lengths(run.send("session_opened"))["lock_slice"]
        assert 30 * 0.75 <= slice_.length <= 30
        assert (slice_.answer_within, slice_.trigger) == (5, "answer_overdue")
        seen.add(slice_.length)
    assert len(seen) == 20


def test_parts_of_the_lease_grow_with_it() -> None:
    long = Script(engine(governor=without_limit()))
    short = Script(Engine(machine(), random=dice(1), lease=LEASE / 4, governor=without_limit()))
    at_long, at_short = lengths(long.to_streaming()), lengths(short.to_streaming())
    for name in ("status_interval", "silence"):
        assert at_long[name].length == pytest.approx(4 * at_short[name].length)
    assert at_long["stable_after"] == at_short["stable_after"]


def test_the_host_may_set_lengths_and_switch_timers_off() -> None:
    run = script(lengths={"connect_timeout": 3.0, "waiting_notice": None, "revive_after": 60.0})
    assert lengths(run.to_locking())["connect_timeout"].length == 3
    assert "waiting_notice" not in lengths(run.send("session_opened"))
    assert lengths(run.send("error_fail"))["revive_after"].length == 60


def test_a_timer_that_is_off_is_not_set() -> None:
    run = script()
    run.to_locking()
    assert run.send("error_fail").set_timers == ()


def test_no_timer_of_the_host_is_shorter_than_a_tenth_of_a_second() -> None:
    run = script(lengths={"waiting_notice": 0.0})
    assert lengths(run.to_acquiring())["waiting_notice"].length == SHORTEST


# Failures and budgets.


def test_attempts_are_counted_by_policy_and_class() -> None:
    run = script()
    run.to_locking()
    counted = [
        run.fail(trigger, error_class).failure
        for trigger, error_class in (
            ("error_retry", "transient_network"),
            ("error_retry", "transient_network"),
            ("error_retry", "server_starting_or_stopping"),
            ("error_retry_long", "server_starting_or_stopping"),
            ("error_retry", "transient_network"),
            ("error_wait", "contention"),
        )
    ]
    assert [failure.failures for failure in counted if failure] == [1, 2, 1, 1, 3, 1]


def test_an_error_without_a_class_counts_as_unknown() -> None:
    run = script()
    run.to_locking()
    failure = run.send("error_retry").failure
    assert failure is not None
    assert failure.error_class == "unknown"


class Always(Random):
    """Draws the same part of every range."""

    def __init__(self, part: float) -> None:
        super().__init__(0)
        self.part = part

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.part


@pytest.mark.parametrize("part", [0.25, 1.0])
def test_delays_come_from_the_policy_of_the_class_and_the_random_source_given(part: float) -> None:
    random = Always(part)
    run = Script(Engine(machine(), random=random, lease=LEASE, governor=without_limit()))
    run.to_locking()
    policy = machine().policy("error_retry", "contention")
    for failures in range(1, 9):
        failure = run.fail("error_retry", "contention").failure
        assert failure is not None
        assert failure.delay == policy.delay(failures, None, random)


def test_a_decorrelated_delay_grows_from_the_last_one_of_its_class() -> None:
    spec = machine(("    jitter: full", "    jitter: decorrelated"))
    run = Script(Engine(spec, random=Always(1.0), lease=LEASE, governor=without_limit()))
    run.to_locking()
    delays = [run.fail("error_retry", "transient_network").failure for _ in range(3)]
    assert [failure.delay for failure in delays if failure] == [1.5, 4.5, 13.5]
    other = run.fail("error_retry", "fenced").failure
    assert other is not None
    assert other.delay == 1.5


def test_the_backoff_timer_is_as_long_as_the_delay_that_was_drawn() -> None:
    run = script()
    run.to_locking()
    step = run.send("error_retry", "transient_network")
    assert step.failure is not None
    assert lengths(step)["backoff"] == SetTimer(
        "backoff", "backoff_elapsed", step.failure.delay or 0.0
    )


def tries_until_spent(run: Script, trigger: str, error_class: str, limit: int = 500) -> int:
    for tries in range(1, limit):
        step = run.fail(trigger, error_class)
        if step.failure is not None and step.failure.delay is None:
            assert lengths(step)["backoff"] == SetTimer("backoff", "budget_spent", 0.0)
            assert run.send("budget_spent").dest == "Failed"
            return tries
    return limit


@pytest.mark.parametrize(
    ("trigger", "error_class"),
    [
        ("error_retry", "handler"),
        ("error_retry", "unknown"),
        ("error_retry_long", "auth"),
        ("error_retry", "hot_loop"),
    ],
)
def test_a_budget_of_retries_ends_in_failed_after_the_first_try_and_as_many_more(
    trigger: str, error_class: str
) -> None:
    policy = machine().policy(trigger, error_class)
    run = script()
    run.to_locking()
    assert policy.max_retries is not None
    assert tries_until_spent(run, trigger, error_class) == policy.max_retries + 1


@pytest.mark.parametrize("error_class", ["transient_network", "contention"])
def test_an_unlimited_policy_never_ends(error_class: str) -> None:
    run = script()
    run.to_locking()
    assert tries_until_spent(run, "error_retry", error_class) == 500


def test_a_budget_of_seconds_ends_in_failed_when_they_were_spent_on_the_error() -> None:
    run = script()
    run.to_locking()
    budget = machine().policy("error_retry_long", "configuration").max_elapsed
    assert budget is not None
    tries_until_spent(run, "error_retry_long", "configuration")
    assert run.now >= budget
    assert run.now < budget + machine().policy("error_retry_long", "configuration").max_delay


def test_seconds_spent_on_one_class_are_not_charged_to_another() -> None:
    run = script()
    run.to_locking()
    first = run.fail("error_retry_long", "configuration").failure
    run.fail("error_retry", "transient_network")
    run.fail("error_retry", "transient_network", after=2 * HOUR)
    again = run.fail("error_retry_long", "configuration").failure
    assert first is not None
    assert again is not None
    assert again.failures == 2
    assert again.delay is not None


def test_seconds_of_one_class_add_up_across_another() -> None:
    budget = machine().policy("error_retry_long", "configuration").max_elapsed or 0.0
    run = script()
    run.to_locking()
    spent, before = 0.0, 0.0
    for _ in range(100):
        step = run.send("error_retry_long", "configuration", after=1000)
        if step.failure is None or step.failure.delay is None:
            break
        began, before = run.now, spent
        run.send("backoff_elapsed", after=step.failure.delay)
        run.send("error_retry", "transient_network", after=20)
        spent += run.now - began
        run.send("retry_now")
    assert before < budget <= spent
    assert run.now > 5 * spent


def test_nothing_but_proven_work_a_reset_or_a_revival_forgets_failures() -> None:
    forgetting = {n for n, event in machine().events.items() if event.forgets_failures}
    assert forgetting == {"work_shown", "reset", "revive"}


def test_connecting_the_lock_and_a_stream_do_not_forget_failures() -> None:
    run = script()
    run.to_locking()
    for failures in range(1, 6):
        run.send("session_opened")
        run.send("lock_granted")
        run.on_to_streaming()
        failure = run.fail("error_retry", "transient_network", after=9).failure
        assert failure is not None
        assert failure.failures == failures


def test_stopping_and_starting_does_not_forget_failures() -> None:
    run = script()
    run.to_locking()
    run.fail("error_retry", "unknown")
    run.send("stop")
    run.send("start")
    failure = run.fail("error_retry", "unknown").failure
    assert failure is not None
    assert failure.failures == 2


def test_proven_work_forgets_all_failures() -> None:
    run = script()
    run.to_locking()
    run.fail("error_retry", "unknown")
    run.fail("error_retry", "transient_network")
    run.send("session_opened")
    run.send("lock_granted")
    run.on_to_streaming()
    assert run.engine.failure is not None
    run.send("work_shown")
    assert run.engine.failure is None
    first = run.fail("error_retry", "unknown", after=5 * HOUR).failure
    assert first is not None
    assert first.failures == 1


def test_seconds_before_proven_work_are_not_charged_after_it() -> None:
    run = script()
    run.to_locking()
    run.fail("error_retry_long", "configuration")
    run.send("session_opened")
    run.send("lock_granted")
    run.on_to_streaming()
    run.send("work_shown")
    run.fail("error_retry_long", "configuration", after=5 * HOUR)
    again = run.fail("error_retry_long", "configuration").failure
    assert again is not None
    assert (again.failures, again.delay is None) == (2, False)


@pytest.mark.parametrize("event", ["reset", "revive"])
def test_leaving_failed_forgets_all_failures(event: str) -> None:
    run = script()
    run.to_locking()
    run.send("error_fail", "configuration")
    run.send(event)
    assert (run.engine.state, run.engine.failure) == ("Locking", None)


def test_a_permanent_error_is_a_failure_without_a_delay() -> None:
    run = script()
    run.to_locking()
    failure = run.send("error_fail", "data_loss").failure
    assert failure is not None
    assert (failure.error_class, failure.failures, failure.delay) == ("data_loss", 1, None)


@pytest.mark.parametrize("row", ["connecting_took_long", "lock_answer_overdue"])
def test_a_row_that_blames_counts_as_that_error(row: str) -> None:
    (found,) = [one for one in machine().transitions if one.id == row]
    run = script()
    run.to_locking()
    run.fail("error_retry", "transient_network")
    if row == "lock_answer_overdue":
        run.send("session_opened")
    failure = run.send(found.trigger).failure
    assert failure is not None
    assert {failure.policy: failure.error_class} == found.blame
    assert failure.failures == 2


# Many engines.


def test_two_engines_on_one_table_do_not_disturb_each_other() -> None:
    table = Table.of(machine())
    one = Script(engine(table=table, governor=without_limit()))
    two = Script(engine(table=table, governor=without_limit(), seed=2))
    one.to_streaming()
    assert (two.engine.state, two.engine.visit, two.engine.facts) == ("Idle", 0, frozenset())
    two.to_locking()
    two.send("error_retry", "transient_network")
    assert (one.engine.state, one.engine.failure) == ("Streaming", None)
    one.send("error_wait", "contention")
    assert (two.engine.state, two.send("retry_now").row) == ("BackingOff", "lock_now")
    assert one.engine.state == "BackingOff"


def test_interleaved_engines_go_the_same_way_as_alone() -> None:
    def run(world: World, events: list[str]) -> None:
        for event in events:
            world.tell(event)
            world.advance(7)

    events = ["start", "retry_now", "stop", "start", "reset", "retry_now"]
    refused = well(start_stream=Answer("error_wait", "contention"))
    alone = [World(engine(seed=seed), refused) for seed in (1, 2)]
    for world in alone:
        run(world, events)
    table = Table.of(machine())
    together = [World(engine(seed=seed, table=table), refused) for seed in (1, 2)]
    for event in events:
        for world in together:
            run(world, [event])
    assert [world.steps for world in together] == [world.steps for world in alone]


def test_an_engine_that_is_forgotten_leaves_the_table_to_the_others() -> None:
    table = Table.of(machine())
    one = Script(engine(table=table, governor=without_limit()))
    two = Script(engine(table=table, governor=without_limit()))
    one.to_locking()
    one.engine.forget()
    two.to_streaming()
    assert list(table.machine.models) == [two.engine._position]


# The governor.

CONTENTION = well(start_stream=Answer("error_wait", "contention"))
SMALL = """    initial_delay: 1
    factor: 2
    max_delay: 60
    jitter: full
    floor: 0.1
    max_retries: null
    max_elapsed: null

states:"""
TINY = """    initial_delay: 0.001
    factor: 1
    max_delay: 0.001
    jitter: none
    floor: 0
    max_retries: null
    max_elapsed: null

states:"""

HOT = {
    "contention straight back to Acquiring": (
        with_row("slot_is_taken", dest="Acquiring", do=("inspect_slot",)),
        CONTENTION,
    ),
    "contention tried again within Acquiring": (
        with_row("slot_is_taken", dest=None, do=("start_stream",)),
        CONTENTION,
    ),
    "slices that end at once": (machine(), well(take_lock=Answer("slice_ended"))),
    "slices that end at once and are a new visit": (
        with_row("ask_for_lock_again", dest="Locking", restart=()),
        well(take_lock=Answer("slice_ended")),
    ),
    "a backoff of a thousandth of a second": (machine((SMALL, TINY)), CONTENTION),
    "a connection refused and tried at once": (
        with_row("locking_retries", dest="Locking", do=("close_session", "open_session")),
        well(open_session=Answer("error_retry", "transient_network")),
    ),
    "a session opened again because it opened": (
        with_row("session_is_open", dest="Locking", do=("open_session",)),
        well(),
    ),
    "a lock asked for again because it was granted": (
        with_row("lock_is_ours", dest="Locking", do=("take_lock",)),
        well(),
    ),
    "a slot inspected again because it was found": (
        with_row("slot_is_fit", dest="Acquiring", do=("inspect_slot",)),
        well(),
    ),
    "a stream received again because it failed": (
        with_row("stream_waits", dest=None, do=("receive",)),
        well(receive=Answer("error_wait", "contention")),
    ),
    "a stream entered again because it failed": (
        with_row("stream_waits", dest="Streaming", do=("receive",)),
        well(receive=Answer("error_wait", "contention")),
    ),
    "a stream that starts over at once": (
        with_row("stream_retries", dest="Locking", do=("close_session", "open_session")),
        well(receive=Answer("error_retry", "transient_network")),
    ),
    "a backoff of no time": (
        machine(("{policy: of_error, trigger: backoff", "{after: 0, trigger: backoff")),
        CONTENTION,
    ),
    "a budget that is spent and tries again": (
        with_row("give_up", dest="Locking", do=("open_session",)),
        well(open_session=Answer("error_retry", "unknown")),
    ),
    "a budget that is spent and nobody hears of it": (
        machine((", exhausted: budget_spent}", "}")),
        well(open_session=Answer("error_retry", "unknown")),
    ),
    "contention straight back, and a budget that nobody hears of": (
        with_row(
            "slot_is_taken",
            (", exhausted: budget_spent}", "}"),
            dest="Acquiring",
            do=("inspect_slot",),
        ),
        CONTENTION,
    ),
    "a timer without length that tries again": (
        with_row(
            "acquiring_took_long",
            ("{after: 60, trigger: acquire_timed_out}", "{after: 0, trigger: acquire_timed_out}"),
            dest=None,
            do=("start_stream",),
            restart=("acquire_timeout",),
            blame={},
        ),
        well(start_stream=None),
    ),
    "a governor's row that tries at once": (
        with_row(
            "governor_intervenes",
            (SMALL, TINY),
            do=("close_session", "open_session"),
        ),
        CONTENTION,
    ),
    "a governor's row that leads to Locking": (
        with_row("governor_intervenes", (SMALL, TINY), dest="Locking", do=("open_session",)),
        CONTENTION,
    ),
}

OPERATIONS = ("open_session", "take_lock", "inspect_slot", "start_stream", "receive")


@pytest.mark.parametrize("rate", [1.0, 0.2])
@pytest.mark.parametrize("case", HOT)
def test_no_file_lets_a_machine_try_faster_than_the_governor_allows(case: str, rate: float) -> None:
    spec, answers = HOT[case]
    governor = Governor(rate=rate, burst=5)
    world = World(engine(spec, governor=governor), answers)
    world.tell("start")
    world.advance(HOUR)
    assert world.interventions > 0
    allowed = governor.burst + HOUR * rate
    asked = {name: world.asked[name] for name in OPERATIONS}
    assert all(count <= allowed + 1 for count in asked.values()), asked


SPAM = {
    "retry_now": (machine(), CONTENTION),
    "retry_now where nothing listens": (machine(), well(open_session=None)),
    "reset": (machine(), CONTENTION),
    "reset of a failure": (machine(), well(inspect_slot=Answer("error_fail", "configuration"))),
}


@pytest.mark.parametrize("case", SPAM)
def test_no_host_can_make_it_try_faster(case: str) -> None:
    spec, answers = SPAM[case]
    world = World(engine(spec), answers)
    world.tell("start")
    for _ in range(HOUR // 10 * 20):
        world.tell(case.split(maxsplit=1)[0])
        world.advance(0.05)
    allowed = world.engine.governor.burst + world.now
    assert all(world.asked[name] <= allowed for name in OPERATIONS), world.asked


def test_a_host_that_stops_and_starts_without_end_is_held_too() -> None:
    world = World(engine(), well())
    for _ in range(1000):
        world.tell("start")
        world.tell("stop")
        world.advance(0.1)
    assert world.asked["open_session"] <= world.engine.governor.burst + world.now


def test_an_intervention_backs_off_as_a_hot_loop_with_nothing_open() -> None:
    world = World(engine(machine()), well(take_lock=Answer("slice_ended")))
    world.tell("start")
    last = world.steps[-1]
    assert (last.dest, last.row, last.governed) == ("BackingOff", "governor_intervenes", True)
    assert (last.actions, world.engine.facts) == (("close_session",), frozenset())
    assert last.failure is not None
    assert (last.failure.policy, last.failure.error_class) == ("error_retry", "hot_loop")
    assert last.failure.delay == 60


def test_an_intervention_starts_no_operation_even_where_the_file_asks_for_one() -> None:
    spec = with_row("governor_intervenes", do=("close_session", "open_session"))
    world = World(engine(spec), well(take_lock=Answer("slice_ended")))
    world.tell("start")
    assert (world.steps[-1].governed, world.steps[-1].actions) == (True, ("close_session",))


def test_a_hot_loop_waits_for_a_token_whatever_its_policy_says() -> None:
    policy = "{initial_delay: 60, factor: 1, max_delay: 60, jitter: none, max_retries: 5}"
    spec = machine((policy, "{initial_delay: 0.01, max_delay: 0.01, floor: 0}"))
    governor = Governor(rate=0.1, burst=5)
    world = World(engine(spec, governor=governor), well(take_lock=Answer("slice_ended")))
    world.tell("start")
    failure = world.steps[-1].failure
    assert failure is not None
    assert failure.delay == governor.pause == 10


def test_a_file_that_ignores_the_governor_is_backed_off_all_the_same() -> None:
    spec = machine()
    without = spec.model_validate(
        {
            **dict(spec),
            "transitions": tuple(r for r in spec.transitions if r.trigger != "hot_loop"),
        }
    )
    world = World(engine(without), well(take_lock=Answer("slice_ended")))
    world.tell("start")
    last = world.steps[-1]
    assert (last.dest, last.actions, last.governed) == ("BackingOff", ("close_session",), True)
    assert world.engine.facts == frozenset()


def test_a_hot_loop_that_does_not_end_ends_in_failed() -> None:
    world = World(engine(), well(take_lock=Answer("slice_ended")))
    world.tell("start")
    world.advance(HOUR)
    assert world.engine.state == "Failed"
    assert world.interventions == 1 + (machine().policy("error_retry", "hot_loop").max_retries or 0)


def test_progress_is_free() -> None:
    governor = Governor(rate=1e-6, burst=1)
    world = World(engine(governor=governor), well())
    world.tell("start")
    world.advance(HOUR)
    assert (world.engine.state, governor.interventions) == ("Streaming", 0)


def test_slices_that_lasted_are_free() -> None:
    governor = Governor(rate=1e-6, burst=1)
    world = World(engine(governor=governor), well(take_lock=Answer("slice_ended", after=30 * 0.75)))
    world.tell("start")
    world.advance(24 * HOUR)
    assert (world.engine.state, governor.interventions) == ("Locking", 0)
    assert world.asked["take_lock"] > 24 * HOUR / 31


def test_ticks_of_a_timer_are_free() -> None:
    governor = Governor(rate=1e-6, burst=1)
    world = World(engine(governor=governor), well(inspect_slot=None, check_work=None))
    world.tell("start")
    world.advance(59)
    assert (world.asked["tell_waiting"], governor.interventions) == (11, 0)


def test_pings_of_a_kept_session_are_free() -> None:
    governor = Governor(rate=1e-6, burst=2)
    world = World(engine(seed=3, governor=governor), CONTENTION)
    world.tell("start")
    world.advance(0.5)
    assert governor.interventions == 0


# The shipped file under its worst adversary.

STAGES = ("open_session", "take_lock", "inspect_slot", "start_stream", "receive")
TRIGGERS = ("error_retry", "error_retry_long", "error_wait")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("trigger", TRIGGERS)
def test_the_shipped_file_never_runs_the_governor_dry(stage: str, trigger: str) -> None:
    one_class_each = {machine().policy(trigger, name): name for name in machine().classes}
    for error_class in one_class_each.values():
        world = World(engine(), well(**{stage: Answer(trigger, error_class)}))
        world.tell("start")
        world.advance(HOUR)
        assert world.interventions == 0, error_class
        assert world.engine.state in ("BackingOff", "Failed")


def test_no_mixture_of_errors_gets_past_the_governor() -> None:
    for seed in range(5):
        world = World(engine(seed=seed), _anything(dice(seed)))
        world.tell("start")
        for _ in range(6):
            world.advance(600)
            world.tell("reset")
        allowed = world.engine.governor.burst + world.now
        assert all(world.asked[name] <= allowed for name in OPERATIONS), (seed, world.asked)


def _anything(random: Random) -> Answers:
    """Let half of all attempts fail at once, somewhere, as anything that may pass."""
    classes = [name for name in machine().classes if name != "hot_loop"]

    def answer(action: str) -> Answer | None:
        if action in STAGES and random.random() < 0.5:
            return Answer(random.choice(TRIGGERS), random.choice(classes))
        return well()(action)

    return answer


def test_three_kills_in_a_row_after_proven_work_do_not_run_it_dry() -> None:
    for seed in range(50):
        kills = [True, True, True]

        def answer(action: str, kills: list[bool] = kills) -> Answer | None:
            if action == "receive" and kills:
                kills.pop()
                proven = 11.0 if len(kills) == 2 else 0.0
                return Answer("error_retry", "transient_network", after=proven)
            return well()(action)

        world = World(engine(seed=seed), answer)
        world.tell("start")
        world.advance(30)
        assert (world.engine.state, world.interventions, kills) == ("Streaming", 0, []), seed


@pytest.mark.parametrize("error_class", ["transient_network", "server_starting_or_stopping"])
@pytest.mark.parametrize("refused", [3, 10, 30])
def test_a_server_that_restarts_does_not_run_it_dry(error_class: str, refused: int) -> None:
    for seed in range(20):
        left = [Answer("error_retry", error_class)] * refused

        def answer(action: str, left: list[Answer] = left) -> Answer | None:
            return left.pop() if action == "open_session" and left else well()(action)

        world = World(engine(seed=seed), answer)
        world.tell("start")
        while world.engine.state != "Streaming" and world.now < HOUR:
            world.advance(10)
        assert (world.engine.state, world.interventions) == ("Streaming", 0), seed


def test_attempts_of_one_class_are_never_nearer_than_the_delay_between_them() -> None:
    world = World(engine(), CONTENTION)
    world.tell("start")
    world.advance(HOUR)
    delays = [step.failure.delay for step in world.steps if step.failure is not None]
    assert len(delays) > 50
    assert all(delay is not None and delay >= 0.1 for delay in delays)
    moves = [step.visit for step in world.steps if step.outcome is Outcome.MOVED]
    assert all(one < two for one, two in pairwise(moves))
