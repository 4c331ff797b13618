"""``slotkeeper demo``: the story of one slot, on a server of its own, told while it happens.

Four kinds of processes take part, each a module here that runs as ``python -m``: ``server``,
``writer``, ``keeper`` and ``rival``. ``stage`` starts them and knows how they are, ``story`` says
what happens, ``terminal`` tells it, ``report`` holds the figures.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Final

from fsm.embedded import find_binaries
from fsm.errors import BadInput

INSTALL: Final = "pip install 'slotkeeper[embedded,cli]'"


def show() -> int:
    """Tell the story on stdout, with a live panel where that is a terminal.

    Returns:
        The exit code: 0 where nothing was lost, 1 where something was, or it was interrupted.

    Raises:
        BadInput: what the demo needs is not installed.
        DemoError: a process of the demo failed, or the story did not go on.
    """
    _check_installed()
    from fsm.demo import command  # noqa: PLC0415  (a core install has no rich)

    return command.show()


def print_json() -> int:
    """Run the same story in silence, and write its figures to stdout as one JSON object.

    Returns:
        The exit code, as that of ``show``.

    Raises:
        BadInput: what the demo needs is not installed.
        DemoError: a process of the demo failed, or the story did not go on.
    """
    _check_installed()
    from fsm.demo import command  # noqa: PLC0415  (a core install has no rich)

    return command.print_json()


def _check_installed() -> None:
    if importlib.util.find_spec("rich") is None:
        raise BadInput(f"the demo draws with rich, which is not installed: {INSTALL}")
    try:
        find_binaries()
    except BadInput as error:
        if os.environ.get("PGBIN"):
            raise
        raise BadInput(
            f"the demo starts a Postgres server of its own, and none is installed here: {INSTALL}"
        ) from error
