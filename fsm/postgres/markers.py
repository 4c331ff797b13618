"""What stands for a value that has no Python form: it was not sent, or Python has none."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Unchanged(Enum):
    """The type of ``UNCHANGED``, for annotations."""

    UNCHANGED = "UNCHANGED"

    def __repr__(self) -> str:
        return "UNCHANGED"

    __str__ = __repr__


UNCHANGED: Final = Unchanged.UNCHANGED
"""A TOASTed value that the update did not touch and the server therefore did not send.

It says nothing about the value: it is not NULL. Compare with ``is``. Its source is the column kind
``u`` (Postgres docs, "Logical Replication Message Formats", TupleData).
"""


class OutOfRange(str):
    """A valid Postgres value that the Python type of its column cannot hold: its text, unchanged.

    Such are ``infinity``, dates before the year 1 or after 9999, the time ``24:00:00``, arrays
    whose first index is not 1, and JSON numbers or documents beyond what Python's parser takes.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"OutOfRange({super().__repr__()})"
