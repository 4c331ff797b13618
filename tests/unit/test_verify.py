"""The proofs: the shipped file holds, and small edits that break it are shown with a path."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fsm.machine.spec import STATES, Spec
from fsm.machine.verify import FLOOR, Edge, Finding, verify, walk
from tests.support.world import machine, with_row

LOOP = "no loop without a delay"
REQUIRED = "a state's requirements hold"
REACHED = "every state is reachable"

TO_ACQUIRING = "Idle --start--> Locking --session_opened--> Locking --lock_granted--> Acquiring"
ON_TO_STREAMING = " --slot_found--> Acquiring --stream_started--> Streaming"
TO_STREAMING = TO_ACQUIRING + ON_TO_STREAMING
LOCK_OUTLIVED = f"{TO_ACQUIRING} --error_retry--> BackingOff --retry_now--> Acquiring"
BACK_WITHOUT_LOCK = (
    "Idle --start--> Locking --error_retry--> BackingOff --backoff_elapsed--> Acquiring"
)
BACK_AT_ONCE = "Locking --error_retry--> BackingOff --backoff_elapsed--> Locking"


def findings(spec: Spec, proof: str) -> list[Finding]:
    return [finding for finding in verify(spec) if finding.proof == proof]


def test_the_shipped_file_holds() -> None:
    assert verify(machine()) == []


LOOPS = {
    "contention straight back to Acquiring": (
        with_row("slot_is_taken", dest="Acquiring", do=("inspect_slot",)),
        "Acquiring --error_wait--> Acquiring",
    ),
    "contention tried again within Acquiring": (
        with_row("slot_is_taken", dest=None, do=("start_stream",)),
        "Acquiring --error_wait--> Acquiring",
    ),
    "a connection refused and tried again": (
        with_row("locking_retries", dest="Locking", do=("close_session", "open_session")),
        "Locking --error_retry--> Locking",
    ),
    "an error of the stream that starts over": (
        with_row("stream_retries", dest="Locking", do=("close_session", "open_session")),
        f"{TO_STREAMING.removeprefix('Idle --start--> ')} --error_retry--> Locking",
    ),
    "a stream that is received again": (
        with_row("stream_waits", dest=None, do=("receive",)),
        "Streaming --error_wait--> Streaming",
    ),
    "a session opened again because it opened": (
        with_row("session_is_open", dest="Locking", do=("open_session",)),
        "Locking --session_opened--> Locking",
    ),
    "slices that nothing paces": (
        machine(("{from: session, paced_by: lock_slice,", "{from: session,")),
        "Locking --slice_ended--> Locking",
    ),
    "full jitter down to nothing": (
        machine(("    floor: 0.1", "    floor: 0")),
        BACK_AT_ONCE,
    ),
    "a backoff of 0.05 s": (
        machine(
            ("    initial_delay: 0.5\n", "    initial_delay: 0.05\n"),
            ("    jitter: full\n    floor: 0.1", "    jitter: none\n    floor: 0"),
        ),
        BACK_AT_ONCE,
    ),
    "a backoff of 0.05 s for one class": (
        machine(
            (
                "contention:                  {initial_delay: 1, max_delay: 60}",
                "contention: {initial_delay: 0.05, max_delay: 60, jitter: none, floor: 0.05}",
            )
        ),
        BACK_AT_ONCE,
    ),
    "a backoff that is no policy's and takes no time": (
        machine(("{policy: of_error, trigger: backoff", "{after: 0, trigger: backoff")),
        BACK_AT_ONCE,
    ),
    "a spent budget that tries again": (
        with_row("give_up", dest="Locking", do=("open_session",)),
        "Locking --error_retry--> BackingOff --budget_spent--> Locking",
    ),
    "a spent budget that nobody hears of": (
        machine((", exhausted: budget_spent}", "}")),
        BACK_AT_ONCE,
    ),
    "a failure revived at once": (
        machine(("revive_after: {after: null,", "revive_after: {after: 0,")),
        "Locking --error_fail--> Failed --revive--> Locking",
    ),
    "a timer that repeats without end": (
        machine(("waiting_notice:  {after: 5,", "waiting_notice:  {after: 0.05,")),
        "Locking --waiting_noticed--> Locking",
    ),
}


@pytest.mark.parametrize("case", LOOPS)
def test_a_loop_that_nothing_slows_down_is_shown_from_end_to_end(case: str) -> None:
    spec, path = LOOPS[case]
    (finding,) = findings(spec, LOOP)
    assert walk(finding.path) == path
    assert finding.path[0].source == finding.path[-1].dest
    assert not any(edge.delayed for edge in finding.path)


REQUIREMENTS = {
    "a lock that is granted and not noted": (
        machine(("{from: session, sets: [lock_held]}", "{from: session}")),
        {
            "Acquiring without lock_held": TO_ACQUIRING,
            "Streaming without lock_held": TO_STREAMING,
        },
    ),
    "a stream on a slot that nobody looked at": (
        with_row("lock_is_ours", do=("start_stream",)),
        {"Streaming without slot_checked": f"{TO_ACQUIRING} --stream_started--> Streaming"},
    ),
    "a session closed and used": (
        with_row("acquiring_retries", dest="Acquiring", do=("close_session", "inspect_slot")),
        {
            "Acquiring without session_open": f"{TO_ACQUIRING} --error_retry--> Acquiring",
            "Acquiring without lock_held": f"{TO_ACQUIRING} --error_retry--> Acquiring",
            "Streaming without session_open": (
                f"{TO_ACQUIRING} --error_retry--> Acquiring{ON_TO_STREAMING}"
            ),
            "Streaming without lock_held": (
                f"{TO_ACQUIRING} --error_retry--> Acquiring{ON_TO_STREAMING}"
            ),
        },
    ),
    "a lock that is believed to outlive its session": (
        machine(("clears: [session_open, lock_held,", "clears: [session_open,")),
        {
            "Acquiring without session_open": LOCK_OUTLIVED,
            "Streaming without session_open": LOCK_OUTLIVED + ON_TO_STREAMING,
        },
    ),
    "a stream that begins without the lock": (
        with_row("session_is_open", dest="Streaming", do=("receive",)),
        {
            "Streaming without lock_held": (
                "Idle --start--> Locking --session_opened--> Streaming"
            ),
            "Streaming without slot_checked": (
                "Idle --start--> Locking --session_opened--> Streaming"
            ),
        },
    ),
    "a backoff that goes on to Acquiring without the lock": (
        with_row("back_to_locking", dest="Acquiring", do=("inspect_slot",)),
        {
            "Acquiring without session_open": BACK_WITHOUT_LOCK,
            "Acquiring without lock_held": BACK_WITHOUT_LOCK,
            "Streaming without session_open": BACK_WITHOUT_LOCK + ON_TO_STREAMING,
            "Streaming without lock_held": BACK_WITHOUT_LOCK + ON_TO_STREAMING,
        },
    ),
}


@pytest.mark.parametrize("case", REQUIREMENTS)
def test_a_state_that_is_entered_without_what_it_requires_is_shown(case: str) -> None:
    spec, shown = REQUIREMENTS[case]
    assert {finding.what: walk(finding.path) for finding in findings(spec, REQUIRED)} == shown


UNREACHABLE = {
    "no row fails": (
        ("Failed",),
        machine(*[("dest: Failed", "dest: BackingOff")] * 4),
    ),
    "the stream that started is not entered": (
        ("Streaming",),
        with_row("stream_begins", dest=None),
    ),
    "the lock is taken and kept": (
        ("Acquiring", "Streaming"),
        with_row("lock_is_ours", dest=None, do=()),
    ),
}


@pytest.mark.parametrize("case", UNREACHABLE)
def test_a_state_that_nothing_leads_to_is_named(case: str) -> None:
    states, spec = UNREACHABLE[case]
    found = findings(spec, REACHED)
    assert [finding.what for finding in found] == [f"nothing leads to {state}" for state in states]
    assert [walk(finding.path) for finding in found] == ["(nowhere)"] * len(states)


def test_a_machine_that_never_begins_reaches_only_idle() -> None:
    spec = with_row("begin", dest=None, do=())
    found = {finding.what for finding in findings(spec, REACHED)}
    assert found == {f"nothing leads to {state}" for state in STATES if state != "Idle"}


def test_a_delay_of_just_the_floor_holds() -> None:
    spec = machine(
        ("    initial_delay: 0.5\n", f"    initial_delay: {FLOOR}\n"),
        ("    jitter: full\n    floor: 0.1", "    jitter: none\n    floor: 0"),
    )
    assert verify(spec) == []


def test_proven_work_counts_as_a_delay() -> None:
    spec = with_row("work_is_proven", dest="Streaming", do=("receive", "check_work"))
    assert findings(spec, LOOP) == []
    unproven = with_row(
        "work_is_proven",
        ("work_shown:        {from: session, sets: [work_proven],", "work_shown: {from: session,"),
        dest="Streaming",
        do=("receive", "check_work"),
    )
    assert [walk(f.path) for f in findings(unproven, LOOP)] == [
        "Streaming --work_shown--> Streaming"
    ]


def test_every_path_is_connected_and_begins_in_idle() -> None:
    for spec, _ in REQUIREMENTS.values():
        for finding in findings(spec, REQUIRED):
            assert finding.path[0].source == "Idle"
            assert all(one.dest == two.source for one, two in pairwise(finding.path))


def test_a_finding_reads_as_a_sentence_and_its_path() -> None:
    (finding,) = findings(with_row("slot_is_taken", dest="Acquiring", do=("inspect_slot",)), LOOP)
    assert str(finding) == (
        "no loop without a delay: this goes round as fast as the server answers\n"
        "    Acquiring --error_wait--> Acquiring"
    )
    assert finding.path == (
        Edge("Acquiring", "error_wait", "Acquiring", "slot_is_taken", delayed=False),
    )
