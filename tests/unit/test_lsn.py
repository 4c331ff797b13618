from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsm.errors import BadInput
from fsm.postgres.lsn import format_lsn, parse_lsn


def test_an_lsn_is_read_as_a_position_in_bytes() -> None:
    assert parse_lsn("16/B374D848") == 0x16_B374_D848
    assert parse_lsn("0/0") == 0
    assert parse_lsn("ffffffff/ffffffff") == 2**64 - 1


def test_leading_zeros_are_read() -> None:
    assert parse_lsn("16/00000001") == 0x16_0000_0001


def test_an_lsn_is_written_as_postgres_writes_it() -> None:
    assert format_lsn(0x16_B374_D848) == "16/B374D848"
    assert format_lsn(0x16_0000_0001) == "16/1"


@given(st.integers(0, 2**64 - 1))
def test_what_is_written_reads_back(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "16",
        "16/",
        "/16",
        "16/B374D8480",
        "1 6/1",
        "16/1\n",
        "0x16/1",
        "G/1",
        "-1/1",
        "\u0661/1",
    ],
)
def test_what_is_no_lsn_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(BadInput, match="is no LSN: write two hexadecimal numbers"):
        parse_lsn(text)


@pytest.mark.parametrize("lsn", [-1, 2**64])
def test_a_number_that_does_not_fit_is_not_written(lsn: int) -> None:
    with pytest.raises(BadInput, match="from 0 to"):
        format_lsn(lsn)
