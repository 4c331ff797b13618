"""``slotkeeper demo``, once, with bounds for a busy machine."""

from __future__ import annotations

import sys

import pytest

from fsm.machine.loader import shipped
from tests.support.demo import Demo

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def test_the_demo_tells_its_figures_and_leaves_nothing_behind() -> None:
    with Demo("--json") as demo:
        figures = demo.figures()
        demo.until_gone()
    assert figures["written"] == figures["received"] > 0
    assert figures["lost"] == 0
    assert figures["received_twice"] < figures["written"] / 10
    assert figures["blocked"]["seconds"] >= 10
    assert 2 <= figures["blocked"]["attempts"] <= 15
    assert figures["blocked"]["cpu_percent"] < 5
    assert 0 < figures["takeover_ms"] < 2000
    assert set(figures["states_visited"]) == set(shipped().states)
    _assert_walked(figures["path"])


def _assert_walked(path: list[list[str]]) -> None:
    """Each move is a row of states.yaml, and begins where the last one ended."""
    assert path[0][0] == path[-1][2] == "Idle"
    for (source, trigger, dest), following in zip(path, [*path[1:], ["Idle"]], strict=True):
        assert dest in {row.dest for row in shipped().rows(source, trigger)}  # type: ignore[arg-type]  # a state's name
        assert dest == following[0]
