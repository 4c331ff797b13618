"""The advisory lock that goes with a slot: its key."""

from __future__ import annotations

import hashlib
from typing import Final

NAMESPACE: Final = "slotkeeper"


def lock_key(slot: str, namespace: str = NAMESPACE) -> int:
    """Give the key of a slot's advisory lock: a signed 64-bit integer.

    It is the first eight bytes, big-endian, of the SHA-256 of the namespace, a zero byte and the
    slot's name, in UTF-8. It is computed here, since ``hashtext`` has 32 bits, is undocumented and
    may change.
    """
    digest = hashlib.sha256(f"{namespace}\0{slot}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def halves(key: int) -> tuple[int, int]:
    """Give classid and objid under which pg_locks shows a 64-bit key (its objsubid is 1)."""
    unsigned = key & 0xFFFF_FFFF_FFFF_FFFF
    return unsigned >> 32, unsigned & 0xFFFF_FFFF
