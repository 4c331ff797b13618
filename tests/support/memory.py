"""A real keeper over a server in memory, on a clock that the test owns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fsm import Keeper, Record, Transaction
from fsm.testing import MemoryServer, MemorySession, VirtualClock
from tests.support.world import dice


@dataclass
class Kept:
    """A keeper, its server and its clock."""

    keeper: Keeper
    server: MemoryServer
    clock: VirtualClock
    rows: list[list[dict[str, Any]]] = field(default_factory=list)
    """What ``consume`` read, by transaction."""

    @property
    def state(self) -> str:
        return self.keeper.state

    @property
    def session(self) -> MemorySession:
        """The session that is open; there is just one."""
        (session,) = self.server.sessions
        return session

    @property
    def nothing_open(self) -> bool:
        """The keeper has let go of every session, those included that never came up."""
        return self.keeper._operations.session is None

    async def reach(self, *states: str, limit: float = 3600.0) -> None:
        """Let time pass until the keeper is in one of ``states``."""
        await self.clock.run_until(lambda: self.state in states, limit)

    def records(self, row: str) -> list[Record]:
        """Give what the journal has of one row."""
        return [record for record in self.keeper.journal if record.facts.get("row") == row]

    def record(self, row: str) -> Record:
        """Give the newest record of a row."""
        return self.records(row)[-1]

    async def consume(self, *, ack: bool = True) -> None:
        """Read all transactions there are, until the keeper ends."""
        async for transaction in self.keeper:
            self.rows.append(await changes_of(transaction))
            if ack:
                await self.keeper.ack(transaction)


async def changes_of(transaction: Transaction) -> list[dict[str, Any]]:
    return [change.new.as_dict() async for change in transaction]  # type: ignore[union-attr]  # inserts only


@asynccontextmanager
async def kept(server: MemoryServer | None = None, **options: Any) -> AsyncIterator[Kept]:
    """Run a keeper of slot orders; what is ready has run when this returns.

    Args:
        server: prepared by the test, clock included; a fresh one where None.
        options: of ``Keeper``.
    """
    server = server or MemoryServer(VirtualClock())
    clock = server.clock
    assert isinstance(clock, VirtualClock)
    keeper = Keeper(
        "host=memory",
        slot="orders",
        publication="orders",
        clock=clock,
        random=options.pop("random", dice(1)),
        new_session=server.session,
        **options,
    )
    async with keeper:
        await clock.settle()
        yield Kept(keeper, server, clock)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def fresh() -> MemoryServer:
    """Make a server to prepare."""
    return MemoryServer(VirtualClock())


async def held_by_another(server: MemoryServer) -> MemorySession:
    """Let another session have the advisory lock."""
    other = server.session()
    await other.open()
    assert await other.lock(1.0)
    return other
