"""The parts of the documentation that are generated from states.yaml.

They stand between ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from fsm.errors import BadInput
from fsm.machine import words
from fsm.machine.diagram import mermaid
from fsm.machine.loader import CHECKED_OUT, load
from fsm.machine.spec import Spec

ROOT: Final = CHECKED_OUT.parent
PAGES: Final = (ROOT / "README.md", ROOT / "docs" / "machine.md")

_PART: Final = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, spec: Spec) -> str:
    """Give the text of a page with its generated parts as they should be.

    Raises:
        BadInput: the page asks for a part that is not known.
    """
    return _PART.sub(lambda found: f"{found[1]}\n{_part(found[2], spec)}\n\n{found[3]}", page)


def _part(name: str, spec: Spec) -> str:
    if name not in _PARTS:
        raise BadInput(f"no part '{name}' can be generated; known are: {', '.join(_PARTS)}")
    return _PARTS[name](spec)


def _diagram(spec: Spec) -> str:
    return f"```mermaid\n{mermaid(spec)}\n```"


def _policies(spec: Spec) -> str:
    return "\n".join(_policy_rows(spec))


def _policy_rows(spec: Spec) -> Iterator[str]:
    yield "| event | class | delays | budget |"
    yield "|---|---|---|---|"
    for name, policy in spec.policies.items():
        yield f"| `{name}` | any other | {words.growth(policy)} | {words.budget(policy)} |"
        for error_class in policy.by_class:
            own = policy.of_class(error_class)
            yield f"| `{name}` | `{error_class}` | {words.growth(own)} | {words.budget(own)} |"


_PARTS: Final[dict[str, Callable[[Spec], str]]] = {"diagram": _diagram, "policies": _policies}


def main() -> None:
    """Write the generated parts of all pages: ``python -m fsm.machine.docs``."""
    spec = load(CHECKED_OUT)
    for page in PAGES:
        if page.exists():
            page.write_text(filled(page.read_text(encoding="utf-8"), spec), encoding="utf-8")


if __name__ == "__main__":
    main()
