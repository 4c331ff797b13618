"""Figures, run by hand: ``pytest -m acceptance -s tests/acceptance``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fsm.embedded import Postgres
from tests.support.servers import Database

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.acceptance)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture
def kept(own_server: Postgres) -> Iterator[Database]:
    """A database with a table ``t``, a publication ``p`` for it and a slot ``s``."""
    with Database(own_server) as database:
        database.allow_leftovers()
        database.sql("CREATE TABLE t (id bigint PRIMARY KEY, payload text)")
        database.sql("CREATE PUBLICATION p FOR TABLE t")
        database.sql("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        yield database
