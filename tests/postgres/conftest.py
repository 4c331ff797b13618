"""Fixtures of the tests against real servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.servers import Database
from tests.support.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsm.embedded import Postgres


@pytest.fixture
def source(database: Database) -> Source:
    """A published table in a fresh database of the shared server."""
    return Source(database)


@pytest.fixture
def own_source(own_server: Postgres) -> Iterator[Source]:
    """A published table on a server for this test alone."""
    with Database(own_server) as database:
        yield Source(database)
