"""A picture as Mermaid text, a flowchart: state diagrams of Mermaid cannot colour an arrow.

Colours and text hold on a light and on a dark page. Source: mermaid.js.org, Flowcharts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from fsm.machine.palette import COLOURS, TEXT, Colours, Tone
from fsm.machine.picture import Arrow, Box, Line, Picture

_BOX_STYLES: Final[dict[Tone, str]] = {
    "goal": "stroke-width:3px",
    "fail": "stroke-width:3px",
    "aside": "stroke-dasharray:4",
}
_ARROW_STYLES: Final[dict[Tone, str]] = {
    "rest": "stroke-width:2px",
    "goal": "stroke-width:4px",
    "retry": "stroke-width:2px",
    "fail": "stroke-width:3px,stroke-dasharray:8 4",
    "aside": "stroke-width:2px,stroke-dasharray:2 4",
}
_HEAD: Final = """\
---
config:
  markdownAutoWrap: false
  flowchart:
    nodeSpacing: 30
    rankSpacing: 40
    wrappingWidth: 600
---
flowchart TB"""

_SPECIAL: Final = re.compile(r"""["#*<>\\`]|(?<!\w)_|_(?!\w)|^[-+](?=\s)|(?<=^\d)[.)]""")
"""What Markdown, or Mermaid around it, would take for its own."""


def render(picture: Picture) -> str:
    """Write a picture as Mermaid text, without a newline at its end."""
    return "\n".join(_parts(picture))


def _parts(picture: Picture) -> Iterator[str]:
    yield _HEAD
    for box in picture.boxes:
        yield f"  {box.name}{_shape(box)}"
    for arrow in picture.arrows:
        yield f"  {arrow.source} -->{_label(arrow)} {arrow.dest}"
    for tone, colours in COLOURS.items():
        yield from _box_style(tone, colours, picture.boxes)
        yield from _arrow_style(tone, colours, picture.arrows)


def _box_style(tone: Tone, colours: Colours, boxes: Iterable[Box]) -> Iterator[str]:
    names = [box.name for box in boxes if box.tone == tone]
    fill = f"fill:{colours.fill},color:{TEXT}" if colours.fill else "fill:none"
    style = f"{fill},stroke:{colours.border}"
    if names:
        yield f"  classDef {tone} {_joined(style, _BOX_STYLES.get(tone))}"
        yield f"  class {','.join(names)} {tone}"


def _arrow_style(tone: Tone, colours: Colours, arrows: Iterable[Arrow]) -> Iterator[str]:
    numbers = [str(number) for number, arrow in enumerate(arrows) if arrow.tone == tone]
    if numbers:
        style = _joined(f"stroke:{colours.arrow}", _ARROW_STYLES.get(tone))
        yield f"  linkStyle {','.join(numbers)} {style}"


def _joined(*styles: str | None) -> str:
    return ",".join(style for style in styles if style)


def _shape(box: Box) -> str:
    before, after = ("([", "])") if box.tone == "aside" else ("[", "]")
    return f"{before}{_text(box.lines)}{after}"


def _label(arrow: Arrow) -> str:
    return f"|{_text(arrow.lines)}|" if arrow.lines else ""


def _text(lines: Iterable[Line]) -> str:
    return '"`' + "\n".join(map(_markdown, lines)) + '`"'


def _markdown(line: Line) -> str:
    strong = f"**{_escape(line.strong)}**" if line.strong else ""
    return f"{strong} {_escape(line.plain)}".strip()


def _escape(text: str) -> str:
    return _SPECIAL.sub(lambda found: f"#{ord(found[0])};", text)
