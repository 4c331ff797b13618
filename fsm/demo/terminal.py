"""Tells the story: a log and a live panel where stdout is a terminal, else plain lines."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fsm.demo.report import Figures, Stretch, fold
from fsm.demo.stage import Event, KeeperOnStage, Stage

REDRAW: Final = 0.125
"""Seconds between two pictures of the panel."""
COLOURS: Final = {
    "Idle": "bright_black",
    "Locking": "blue",
    "Acquiring": "cyan",
    "Streaming": "green",
    "BackingOff": "yellow",
    "Failed": "red",
}
_WIDEST: Final = 110


class Silent:
    """Looks on and says nothing."""

    def hear(self, event: Event) -> None:
        """Nothing."""

    async def watch(self, stage: Stage) -> None:
        """Nothing."""


class Lines:
    """Writes a line for each event."""

    def hear(self, event: Event) -> None:
        """Write it."""
        sys.stdout.write(f"{event.moment:5.1f}  {event.who:<8}  {event.text}\n")
        sys.stdout.flush()

    async def watch(self, stage: Stage) -> None:
        """Nothing: the lines say it all."""


class Terminal:
    """Writes the log, and draws how all are now beneath it.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def hear(self, event: Event) -> None:
        """Write it above the panel."""
        row = Table.grid(padding=(0, 2))
        row.add_column(width=5, justify="right", style="bright_black")
        row.add_column(width=8)
        row.add_column(ratio=1, overflow="fold")
        row.add_row(f"{event.moment:.1f}", Text(event.who, _style(event)), _words(event))
        self._console.print(row, width=_width(self._console))

    async def watch(self, stage: Stage) -> None:
        """Draw the panel until cancelled."""
        # Redrawn from here: rich's own way to redraw is a thread.
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(_panel(stage, _width(self._console)), refresh=True)
                await asyncio.sleep(REDRAW)


def audience(console: Console) -> Lines | Terminal:
    """Give who looks on where the console is."""
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return Terminal(console)
    return Lines()


def _width(console: Console) -> int:
    return min(console.width, _WIDEST)


def _style(event: Event) -> str:
    return "" if event.state else "bold"


def _words(event: Event) -> Text:
    return _coloured(event.text, _style(event))


def _coloured(words: str, style: str = "") -> Text:
    """Give words in which each state has its colour."""
    text = Text(words, style)
    for state, colour in COLOURS.items():
        text.highlight_words([state], f"bold {colour}")
    return text


def _panel(stage: Stage, width: int) -> RenderableType:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(width=8, style="bold")
    grid.add_column(ratio=1)
    grid.add_row("server", _server(stage))
    grid.add_row("rival", _rival(stage))
    for keeper in stage.keepers.values():
        grid.add_row(keeper.title, _keeper(keeper))
    title = f"slotkeeper demo  {stage.seconds:.0f} s"
    return Panel(grid, title=title, title_align="left", box=box.ROUNDED, width=width)


def _server(stage: Stage) -> Text:
    if not stage.server_up:
        return Text("down", "yellow")
    counts = f"about {stage.written} rows written, {len(stage.stored())} received"
    return Text.assemble(("up", "green"), f": {counts}")


def _rival(stage: Stage) -> Text:
    if stage.rival_since is None:
        return Text("away", "bright_black")
    held = f"holds the slot for {time.monotonic() - stage.rival_since:.1f} s"
    return Text.assemble(("here", "bold red"), f": {held}{_cost(stage)}")


def _cost(stage: Stage) -> str:
    keeper, before = stage.blocked, stage.blocked_since
    if keeper is None or before is None or keeper.present["at"] <= before["at"]:
        return ""
    seconds = keeper.present["at"] - before["at"]
    percent = 100 * (keeper.present["cpu"] - before["cpu"]) / seconds
    return f"; {keeper.title} used {percent:.2f} % CPU until its last attempt"


def _keeper(keeper: KeeperOnStage) -> Text:
    if keeper.killed:
        return Text.assemble(("killed", "bold red"), f": pid {keeper.process.pid} is gone, SIGKILL")
    return _coloured(keeper.why())


def show_figures(console: Console, figures: Figures) -> None:
    """Print the table of figures, and the path."""
    table = Table(box=box.ROUNDED, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _rows(figures):
        table.add_row(name, value)
    console.print("", "What was found", table, "", sep="\n", width=_width(console))
    console.print("The path of the keeper that was left")
    for stretch in fold(figures.path):
        console.print(_stretch(stretch))


def _rows(figures: Figures) -> Sequence[tuple[str, str]]:
    blocked = figures.blocked
    cpu = f"{blocked.cpu_percent:.2f} % CPU"
    return (
        ("written", f"{figures.written} rows"),
        ("received", f"{figures.received} distinct ids that a handler stored"),
        ("lost", str(figures.lost)),
        ("received twice", str(figures.received_twice)),
        ("blocked", f"{blocked.seconds:.1f} s, {blocked.attempts} attempts, {cpu}"),
        ("takeover", f"{figures.takeover_ms:.1f} ms from SIGKILL to COPY BOTH"),
        ("states visited", ", ".join(figures.states_visited)),
    )


def _stretch(stretch: Stretch) -> Text:
    steps = (f" --{trigger}--> {dest}" for _, trigger, dest in stretch.moves)
    times = f", {stretch.times} times" if stretch.times > 1 else ""
    return _coloured(f"  {stretch.moves[0][0]}{''.join(steps)}{times}")
