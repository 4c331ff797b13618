"""A machine as a diagram: Mermaid, DOT or SVG text, without a newline at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fsm.errors import BadInput
from fsm.machine import diagram_dot, diagram_mermaid
from fsm.machine.picture import draw
from fsm.machine.spec import Spec


def mermaid(spec: Spec) -> str:
    """Draw a machine as Mermaid text."""
    return diagram_mermaid.render(draw(spec))


def dot(spec: Spec) -> str:
    """Draw a machine as DOT text, for Graphviz."""
    return diagram_dot.render(draw(spec))


def svg(spec: Spec) -> str:
    """Draw a machine as SVG text, on white, for browsers: its words are HTML. Takes seconds.

    Raises:
        BadInput: the extra ``cli`` is not installed.
    """
    try:
        # Here, since it is an extra that only SVG needs.
        import mermaidx  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        raise BadInput("SVG needs an extra; install it: pip install 'slotkeeper[cli]'") from error
    drawn: str = mermaidx.render(mermaid(spec)).svg()
    return drawn.replace("background-color: transparent", "background-color: #ffffff", 1)


FORMATS: Final[dict[str, Callable[[Spec], str]]] = {"mermaid": mermaid, "dot": dot, "svg": svg}
"""By the name that the command gives them."""
