"""``slotkeeper demo``: its figures, and that nothing is left of it however it ends."""

from __future__ import annotations

import os
import pty
import re
import signal
import statistics
import time
from contextlib import suppress
from typing import Any

import pytest

from fsm.machine.loader import shipped
from tests.support.demo import Demo

RUNS = 3

MOMENTS = {
    "while the server is made": lambda demo: demo.runs("server"),
    "when two keepers run": lambda demo: demo.runs("keeper"),
    "when the rival has come": lambda demo: demo.runs("rival"),
}


def _shown(figures: dict[str, Any]) -> str:
    blocked = figures["blocked"]
    return (
        f"written {figures['written']}, received {figures['received']}, lost {figures['lost']}, "
        f"twice {figures['received_twice']}, blocked {blocked['seconds']} s, "
        f"{blocked['attempts']} attempts, {blocked['cpu_percent']} % CPU, "
        f"takeover {figures['takeover_ms']} ms"
    )


def _assert_complete(figures: dict[str, Any]) -> None:
    print(f"\n{_shown(figures)}")  # noqa: T201  (what acceptance is run for)
    assert figures["written"] == figures["received"]
    assert figures["lost"] == 0
    assert figures["blocked"]["seconds"] >= 10
    assert set(figures["states_visited"]) == set(shipped().states)


def test_its_figures_are_those_that_are_promised() -> None:
    percents, takeovers, lengths = [], [], []
    for _ in range(RUNS):
        began = time.monotonic()
        with Demo("--json") as demo:
            figures = demo.figures()
            lengths.append(time.monotonic() - began)
            demo.until_gone()
        _assert_complete(figures)
        percents.append(figures["blocked"]["cpu_percent"])
        takeovers.append(figures["takeover_ms"])
    print(  # noqa: T201  (what acceptance is run for)
        f"\nmedians of {RUNS}: {statistics.median(percents)} % CPU, "
        f"takeover {statistics.median(takeovers)} ms, {statistics.median(lengths):.1f} s in all"
    )
    assert statistics.median(percents) < 0.5
    assert statistics.median(takeovers) < 100
    assert max(lengths) < 60


def test_two_at_once_do_not_disturb_each_other() -> None:
    with Demo("--json") as first, Demo("--json") as second:
        for demo in (first, second):
            _assert_complete(demo.figures())
            demo.until_gone()


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_is_left_after_ctrl_c(moment: str) -> None:
    with Demo("--json") as demo:
        demo.until(MOMENTS[moment])
        os.killpg(demo.process.pid, signal.SIGINT)
        assert demo.process.wait(20) == 1
        assert demo.left() == []
        assert demo.output() == ""
        assert "interrupted" in demo.errors()


def test_nothing_is_left_after_an_impatient_ctrl_c() -> None:
    with Demo("--json") as demo:
        demo.until(MOMENTS["when two keepers run"])
        for _ in range(20):
            with suppress(ProcessLookupError):
                os.killpg(demo.process.pid, signal.SIGINT)
            time.sleep(0.02)
        demo.until_gone()


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_is_left_after_sigkill(moment: str) -> None:
    with Demo("--json") as demo:
        demo.until(MOMENTS[moment])
        demo.process.kill()
        demo.until_gone()


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_is_left_where_the_servers_process_is_killed(moment: str) -> None:
    with Demo("--json") as demo:
        demo.until(MOMENTS[moment])
        demo.until(lambda one: any(one.temporary.iterdir()))
        demo.until(lambda one: one.kill("server"))
        assert demo.process.wait(30) == 1
        demo.until_gone()
        assert "the server ended by itself" in demo.errors()


def test_a_reader_that_leaves_ends_it() -> None:
    reading, writing = os.pipe()
    with Demo(stdout=writing) as demo:
        os.close(writing)
        assert os.read(reading, 1)
        os.close(reading)
        assert demo.process.wait(60) == 1
        demo.until_gone()


def test_without_a_terminal_it_writes_plain_lines() -> None:
    with Demo() as demo:
        out = demo.output()
        demo.until_gone()
    assert demo.process.returncode == 0
    assert "\x1b" not in out
    assert "Acquiring -> BackingOff (error_wait): attempt 2, contention 55006." in out
    assert re.search(r"lost +│ 0 ", out)
    assert out.rstrip().endswith("Failed --stop--> Idle")


def test_in_a_terminal_it_draws_how_all_are_now() -> None:
    outside, inside = pty.openpty()
    with Demo(stdout=inside) as demo:
        os.close(inside)
        drawn = _read_all(outside)
        assert demo.process.wait(10) == 0
        demo.until_gone()
    assert "slotkeeper demo" in drawn
    assert len(set(re.findall(r"BackingOff\S*, (\d+\.\d) s more", _plain(drawn)))) > 10
    assert "\x1b[?25h" in drawn, "the cursor is shown again"


def _read_all(terminal: int) -> str:
    pieces = []
    with suppress(OSError):  # Linux: the other side is closed
        while piece := os.read(terminal, 65536):
            pieces.append(piece)
    os.close(terminal)
    return b"".join(pieces).decode()


def _plain(drawn: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn)
