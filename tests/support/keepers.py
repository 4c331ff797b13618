"""What the unit tests share: keepers on a server in memory, and hosts that read from them."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import fsm
from fsm.feed import Item
from fsm.postgres.changes import Insert
from fsm.testing import MemoryServer
from fsm.transaction import Transaction


class Middle(Random):
    """Draws the middle of every range, so that a test can say how long a delay is."""

    def random(self) -> float:
        return 0.5


def keeper_of(server: MemoryServer, **choices: Any) -> fsm.Keeper:
    """Make a keeper of the server's slot, on the server's clock."""
    choices.setdefault("random", Middle())
    choices.setdefault("new_session", server.session)
    return fsm.Keeper(
        "host=memory", slot=server.slot, publication="orders", clock=server.clock, **choices
    )


def row_of(item: Item) -> dict[str, Any]:
    """Give the row of an insert."""
    assert isinstance(item, Insert)
    return item.new.as_dict()


async def rows_of(transaction: Transaction) -> list[dict[str, Any]]:
    """Read what is left of a transaction."""
    return [row_of(item) async for item in transaction]


class Host:
    """Reads and acknowledges all that a keeper hands over, and remembers it."""

    def __init__(self, keeper: fsm.Keeper) -> None:
        self.keeper = keeper
        self.rows: list[dict[str, Any]] = []

    async def run(self) -> None:
        """Read until iteration ends, or raises."""
        async for transaction in self.keeper:
            self.rows += await rows_of(transaction)
            await self.keeper.ack(transaction)

    def begin(self) -> asyncio.Task[None]:
        """Run in a task."""
        return asyncio.create_task(self.run())


async def settle(rounds: int = 20) -> None:
    """Let what is ready run, for so many rounds of the event loop."""
    for _ in range(rounds):
        await asyncio.sleep(0)
