from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.postgres.lock import halves, lock_key


def test_the_key_is_what_its_documentation_says() -> None:
    digest = hashlib.sha256(b"slotkeeper\0orders").digest()
    assert lock_key("orders") == int.from_bytes(digest[:8], "big", signed=True)


@pytest.mark.parametrize(
    ("slot", "namespace", "key"),
    [
        ("orders", "slotkeeper", -119_968_598_707_466_200),
        ("a", "slotkeeper", 4_112_125_079_632_637_578),
        ("orders", "staging", -8_162_022_930_998_655_756),
    ],
)
def test_the_key_never_changes_between_releases(slot: str, namespace: str, key: int) -> None:
    assert lock_key(slot, namespace) == key


def test_slots_and_namespaces_have_keys_of_their_own() -> None:
    keys = {lock_key(slot, space) for slot in ("a", "b", "ab") for space in ("x", "y", "xa")}
    assert len(keys) == 9


def test_what_divides_namespace_and_slot_counts() -> None:
    assert lock_key("bc", "a") != lock_key("c", "ab")


@given(st.from_regex(r"[a-z0-9_]{1,63}", fullmatch=True), st.text(max_size=20))
def test_a_key_fits_a_bigint(slot: str, namespace: str) -> None:
    assert -(2**63) <= lock_key(slot, namespace) < 2**63


@given(st.integers(-(2**63), 2**63 - 1))
def test_the_halves_make_up_the_key(key: int) -> None:
    high, low = halves(key)
    assert 0 <= high < 2**32
    assert 0 <= low < 2**32
    assert (high << 32 | low) == key % 2**64


def test_the_halves_of_a_negative_key_are_oids() -> None:
    assert halves(-1) == (0xFFFF_FFFF, 0xFFFF_FFFF)
    assert halves(1) == (0, 1)
    assert halves(-(2**63)) == (0x8000_0000, 0)
