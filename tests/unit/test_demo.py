"""The demo's parts that need no server."""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fsm import demo
from fsm.cli import main
from fsm.demo.ledger import Ledger
from fsm.demo.report import (
    Account,
    Blocked,
    Figures,
    Stretch,
    account_for,
    fold,
    visited,
    walked,
)
from fsm.demo.stage import KeeperOnStage
from fsm.demo.story import describe
from fsm.health import Health

if TYPE_CHECKING:
    from fsm.demo.process import Process

BEGIN = ("Idle", "start", "Locking")
LOCKED = ("Locking", "lock_granted", "Acquiring")
REFUSED = ("Acquiring", "error_wait", "BackingOff")
AGAIN = ("BackingOff", "backoff_elapsed", "Acquiring")
STREAMING = ("Acquiring", "stream_started", "Streaming")


def record(source: str, trigger: str, dest: str, **fields: Any) -> dict[str, Any]:
    given = {"attempt": None, "delay": None, "detail": "", "facts": {}, **fields}
    return {"state": source, "trigger": trigger, "dest": dest, **given}


def refusal(attempt: int) -> dict[str, Any]:
    return record(
        *REFUSED,
        error_class="contention",
        action="wait",
        attempt=attempt,
        delay=1.25,
        detail="slot 'orders' is held by pid 712.",
        facts={"sqlstate": "55006"},
    )


def test_rows_that_no_handler_stored_are_lost() -> None:
    assert account_for([1, 2, 3, 4], Counter({1: 1, 3: 1})) == Account(2, 2, 0)


def test_a_row_that_both_keepers_stored_is_received_once_and_counted_as_twice() -> None:
    assert account_for([1, 2], Counter({1: 2, 2: 1})) == Account(2, 0, 1)


def test_the_share_of_the_cpu_is_its_time_over_seconds() -> None:
    assert Blocked(seconds=10.0, attempts=5, cpu_seconds=0.02).cpu_percent == pytest.approx(0.2)


def test_a_path_leaves_out_what_stays_in_its_state() -> None:
    records = [record(*BEGIN), record("Locking", "session_opened", "Locking"), record(*LOCKED)]
    assert walked(records) == (BEGIN, LOCKED)


def test_visited_states_come_in_the_order_of_the_machine() -> None:
    assert visited([REFUSED, BEGIN]) == ("Idle", "Locking", "Acquiring", "BackingOff")


@pytest.mark.parametrize("times", [2, 3])
def test_a_loop_that_was_walked_several_times_is_folded(times: int) -> None:
    path = [BEGIN, LOCKED, *[REFUSED, AGAIN] * times, STREAMING]
    assert fold(path) == [
        Stretch((BEGIN,), 1),
        Stretch((LOCKED,), 1),
        Stretch((REFUSED, AGAIN), times),
        Stretch((STREAMING,), 1),
    ]


def test_a_loop_that_was_walked_once_is_not_folded() -> None:
    assert fold([REFUSED, AGAIN, STREAMING]) == [
        Stretch((REFUSED,), 1),
        Stretch((AGAIN,), 1),
        Stretch((STREAMING,), 1),
    ]


@pytest.mark.parametrize("length", range(12))
def test_a_folded_path_holds_every_move(length: int) -> None:
    path = ([BEGIN, LOCKED] + [REFUSED, AGAIN] * 5)[:length]
    unfolded = [move for stretch in fold(path) for move in stretch.moves * stretch.times]
    assert unfolded == path


def test_figures_are_one_object_of_plain_data() -> None:
    figures = Figures(
        written=10,
        received=9,
        lost=1,
        received_twice=2,
        blocked=Blocked(10.50049, 4, 0.0123),
        takeover_ms=19.3456,
        states_visited=("Idle", "Locking"),
        path=(BEGIN,),
    )
    assert figures.as_dict() == {
        "written": 10,
        "received": 9,
        "lost": 1,
        "received_twice": 2,
        "blocked": {"seconds": 10.5, "attempts": 4, "cpu_percent": 0.117},
        "takeover_ms": 19.35,
        "states_visited": ["Idle", "Locking"],
        "path": [["Idle", "start", "Locking"]],
    }


def test_a_ledger_takes_in_what_was_added_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "stored"
    ledger = Ledger(path)
    ledger.read_on()
    path.write_bytes(b"1\n2\n1")
    ledger.read_on()
    assert ledger.stored == {1: 1, 2: 1}
    with path.open("ab") as file:
        file.write(b"0\n2\n")
    ledger.read_on()
    assert ledger.stored == {1: 1, 2: 2, 10: 1}


def test_the_first_refusal_is_told_with_its_reason_and_its_delay() -> None:
    assert describe(refusal(1)) == (
        "Acquiring -> BackingOff (error_wait): attempt 1, contention 55006: "
        "slot 'orders' is held by pid 712. Next try in 1.2 s, of at most 1."
    )


def test_later_refusals_show_how_the_delay_grows() -> None:
    assert describe(refusal(4)) == (
        "Acquiring -> BackingOff (error_wait): attempt 4, contention 55006. "
        "Next try in 1.2 s, of at most 8."
    )


def test_failed_is_told_with_its_remedy() -> None:
    failed = record(
        "Streaming",
        "error_fail",
        "Failed",
        error_class="configuration",
        attempt=1,
        detail="publication 'orders' does not exist",
        facts={"remedy": "Create it."},
    )
    assert describe(failed) == (
        "Streaming -> Failed (error_fail): attempt 1, configuration: "
        "publication 'orders' does not exist. Create it."
    )


def test_a_step_back_to_the_slot_is_not_told() -> None:
    assert describe(record(*AGAIN)) is None


def test_the_countdown_runs_without_asking_the_keeper() -> None:
    health = Health(
        slot="orders",
        state="BackingOff",
        for_seconds=0.0,
        session_open=True,
        lock_held=True,
        attempt=2,
        next_try=5.0,
        error_class="contention",
        reason="slot 'orders' is held by pid 712.",
        remedy=None,
        holder="pid 712",
        flushed=0,
        waiting_bytes=0,
    )
    process: Process = None  # type: ignore[assignment]  # not looked at here
    keeper = KeeperOnStage("A", process, Ledger(Path("nowhere")))
    keeper.hear(
        {"kind": "present", "at": time.monotonic() - 3, "cpu": 0.0, "health": asdict(health)}
    )
    assert keeper.why().startswith(("BackingOff, 2.0 s more", "BackingOff, 1.9 s more"))


@pytest.mark.parametrize("arguments", [["demo"], ["demo", "--json"]])
def test_without_rich_the_command_that_installs_it_is_named(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "rich" else find_spec(name)
    )
    assert main(arguments) == 2
    assert demo.INSTALL in capsys.readouterr().err


def test_without_a_server_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PGBIN", raising=False)
    monkeypatch.setattr("fsm.embedded.binaries._installed", lambda: iter(()))
    assert main(["demo", "--json"]) == 2
    assert demo.INSTALL in capsys.readouterr().err


def test_a_folder_that_holds_no_server_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PGBIN", str(tmp_path))
    assert main(["demo", "--json"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
