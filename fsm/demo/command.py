"""Runs the story for the command line."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Final

from rich.console import Console

from fsm.demo import terminal
from fsm.demo.report import Figures
from fsm.demo.stage import Audience
from fsm.demo.story import play

OK: Final = 0
FAILED: Final = 1


def show() -> int:
    """Tell the story on stdout; see ``fsm.demo.show``."""
    console = Console(highlight=False)
    figures = _play(terminal.audience(console))
    if figures is None:
        return FAILED
    terminal.show_figures(console, figures)
    return FAILED if figures.lost else OK


def print_json() -> int:
    """Print the figures; see ``fsm.demo.print_json``."""
    figures = _play(terminal.Silent())
    if figures is None:
        return FAILED
    sys.stdout.write(json.dumps(figures.as_dict(), indent=2) + "\n")
    sys.stdout.flush()
    return FAILED if figures.lost else OK


def _play(audience: Audience) -> Figures | None:
    """Give what was found; None where a signal ended the story."""
    try:
        return asyncio.run(_play_until_told(audience))
    except asyncio.CancelledError:
        sys.stderr.write("slotkeeper: the demo was interrupted, and has cleaned up\n")
        return None


async def _play_until_told(audience: Audience) -> Figures:
    playing = asyncio.create_task(play(audience))
    asked = False

    def ask() -> None:
        nonlocal asked
        if not asked:  # a second signal must not interrupt the cleaning up
            asked = True
            playing.cancel()

    loop = asyncio.get_running_loop()
    for number in _signals():
        loop.add_signal_handler(number, ask)
    return await playing


def _signals() -> list[signal.Signals]:
    """What ends the demo; SIGHUP not where nohup had it ignored."""
    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    return ends
