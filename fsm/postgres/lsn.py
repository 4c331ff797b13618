"""LSNs: positions in the write-ahead log, as text and as int."""

from __future__ import annotations

import re

from fsm.errors import BadInput

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_HIGHEST = 0xFFFF_FFFF_FFFF_FFFF


def parse_lsn(text: str) -> int:
    """Read an LSN as Postgres writes it.

    Args:
        text: two hexadecimal numbers of up to eight digits, ``16/B374D848``
            (Postgres docs, "pg_lsn Type").

    Returns:
        The byte position, 0 to 2**64 - 1.

    Raises:
        BadInput: the text is no LSN.
    """
    found = _LSN.fullmatch(text)
    if found is None:
        raise BadInput(
            f"{text!r} is no LSN: write two hexadecimal numbers of up to eight digits"
            " with a slash between them, such as '16/B374D848'."
        )
    return int(found[1], 16) << 32 | int(found[2], 16)


def format_lsn(lsn: int) -> str:
    """Write an LSN as Postgres does.

    Args:
        lsn: the byte position, 0 to 2**64 - 1.

    Returns:
        For example ``16/B374D848``.

    Raises:
        BadInput: the number does not fit in 64 bits.
    """
    if not 0 <= lsn <= _HIGHEST:
        raise BadInput(f"{lsn} is no LSN: an LSN is a number from 0 to 2**64 - 1.")
    return f"{lsn >> 32:X}/{lsn & 0xFFFF_FFFF:X}"
