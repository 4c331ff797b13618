"""The colours of a diagram, by what a thing is about.

Arrows are seen on a light and on a dark page; text stands on the light fill of its box.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

Tone: TypeAlias = Literal["rest", "way", "goal", "retry", "fail", "aside"]
"""What a box or an arrow is about: it has one look wherever it is drawn."""


class Colours(NamedTuple):
    """As ``#rrggbb``."""

    fill: str | None
    """None lets the page shine through, whose own colour text then has."""
    border: str
    arrow: str


COLOURS: Final[dict[Tone, Colours]] = {
    "rest": Colours("#eaeef2", "#6e7781", "#848d97"),
    "way": Colours("#ddf4ff", "#0969da", "#0969da"),
    "goal": Colours("#dafbe1", "#1a7f37", "#2da44e"),
    "retry": Colours("#fff8c5", "#bf8700", "#bf8700"),
    "fail": Colours("#ffebe9", "#cf222e", "#cf222e"),
    "aside": Colours(None, "#848d97", "#848d97"),
}
TEXT: Final = "#1f2328"
