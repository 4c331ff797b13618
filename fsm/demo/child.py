"""The inside of the demo's processes: words come on stdin, messages go to stdout.

A word is a line. A message is one JSON object a line, with its ``kind``. The end of stdin says
that the demo is gone, however it went: each process then ends by itself.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Mapping
from typing import Any, Final

STDIN: Final = 0
STDOUT: Final = 1
LONGEST_WORD: Final = 4096
"""Bytes."""


def options() -> dict[str, Any]:
    """What the demo passed on the command line."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    return given


def tell(kind: str, **content: object) -> None:
    """Send a message."""
    message: Mapping[str, object] = {"kind": kind, **content}
    rest = json.dumps(message, default=str).encode() + b"\n"
    while rest:
        rest = rest[os.write(STDOUT, rest) :]


def next_word() -> str | None:
    """Wait for a word; None at the end of stdin.

    The demo sends one only after the last was answered, so one read gives one word.
    """
    return os.read(STDIN, LONGEST_WORD).decode().strip() or None


def told_to_end(seconds: float) -> bool:
    """Wait for so long; True as soon as stdin says anything at all, or ends."""
    ready, _, _ = select.select([STDIN], [], [], seconds)
    return bool(ready)
