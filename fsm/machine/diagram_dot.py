"""A picture as DOT text. Source: graphviz.org, DOT Language, Node Shapes (HTML-like labels)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Final

from fsm.machine.palette import COLOURS, TEXT, Tone
from fsm.machine.picture import Arrow, Box, Line, Picture

_BOX_STYLES: Final[dict[Tone, str]] = {
    "goal": ", penwidth=3",
    "fail": ", penwidth=3",
    "aside": ', style="rounded,dashed"',
}
_ARROW_STYLES: Final[dict[Tone, str]] = {
    "goal": ", penwidth=3, weight=4",
    "retry": ", penwidth=1.5",
    "fail": ", penwidth=2, style=dashed",
    "aside": ", style=dotted",
}
_FONT: Final = f'fontname="Helvetica,Arial,sans-serif", fontcolor="{TEXT}"'
_HEAD: Final = f"""\
digraph machine {{
  graph [bgcolor="#ffffff", nodesep=0.3, ranksep=0.4]
  node [shape=box, style=filled, fontsize=11, {_FONT}]
  edge [fontsize=10, {_FONT}]"""


def render(picture: Picture) -> str:
    """Write a picture as DOT text, without a newline at its end."""
    return "\n".join(_parts(picture))


def _parts(picture: Picture) -> Iterator[str]:
    yield _HEAD
    yield from map(_node, picture.boxes)
    yield from map(_edge, picture.arrows)
    yield "}"


def _node(box: Box) -> str:
    colours = COLOURS[box.tone]
    fill = colours.fill or "transparent"
    style = f'fillcolor="{fill}", color="{colours.border}"{_BOX_STYLES.get(box.tone, "")}'
    return f"  {box.name} [label=<{_text(box.lines)}>, {style}]"


def _edge(arrow: Arrow) -> str:
    style = f'color="{COLOURS[arrow.tone].arrow}"{_ARROW_STYLES.get(arrow.tone, "")}'
    label = f"label=<{_text(arrow.lines)}>, " if arrow.lines else ""
    return f"  {arrow.source} -> {arrow.dest} [{label}{style}]"


def _text(lines: Iterable[Line]) -> str:
    return "<br/>".join(map(_html, lines))


def _html(line: Line) -> str:
    strong = f"<b>{escape(line.strong)}</b>" if line.strong else ""
    return f"{strong} {escape(line.plain)}".strip()
