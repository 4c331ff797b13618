"""Fixtures of all tests: throw-away servers, one per version and worker, and fresh databases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fsm.errors import BadInput
from tests.support import binaries
from tests.support.servers import Database, Servers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsm.embedded import Postgres


def pytest_configure(config: pytest.Config) -> None:
    # Workers of xdist must find the binaries ready; only they have this attribute.
    if not hasattr(config, "workerinput"):
        binaries.unpack_installed()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that needs a server runs once per version, unless it names its versions itself."""
    if "version" not in metafunc.fixturenames:
        return
    marks = metafunc.definition.iter_markers("parametrize")
    if any("version" in str(mark.args[0]).replace(" ", "").split(",") for mark in marks):
        return
    try:
        versions = binaries.wanted()
    except BadInput as error:
        raise pytest.UsageError(str(error)) from error
    metafunc.parametrize("version", versions, ids=lambda number: f"pg{number}", scope="session")


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Makes servers: ``with servers.make(version, settings) as server``."""
    made = Servers()
    yield made
    made.close()


@pytest.fixture
def installed(version: int) -> int:
    """The version, whose binaries are there: a version that is missing fails its tests."""
    try:
        binaries.bin_dir(version)
    except BadInput as error:
        pytest.fail(str(error), pytrace=False)
    return version


@pytest.fixture
def server(servers: Servers, installed: int) -> Postgres:
    """The running server of this version, shared: do not stop it and do not change its settings."""
    return servers.shared(installed)


@pytest.fixture
def own_server(servers: Servers, installed: int) -> Iterator[Postgres]:
    """A running server for this test alone, to stop, kill, freeze and configure."""
    with servers.make(installed) as made:
        yield made


@pytest.fixture
def database(server: Postgres) -> Iterator[Database]:
    """A fresh database on the shared server; what a test leaves active on it is an error."""
    with Database(server) as made:
        yield made
