"""One keeper of the demo, and the program that it serves: that one stores ids in a file."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from fsm.demo.child import options, tell
from fsm.demo.server import PUBLICATION, SLOT
from fsm.errors import LeaseLost, SlotFailed
from fsm.keeper import Keeper
from fsm.postgres.changes import Change
from fsm.runtime.journal import Record
from fsm.transaction import Transaction

SETTLING: Final = 0.1
"""Seconds after a record until the keeper says once more how it is: by then it knows for whom it
waits. It says nothing in between, since that would cost the processor time that is measured."""


def main() -> None:
    """Keep the slot until stdin ends."""
    given = options()
    asyncio.run(_main(given["dsn"], given["name"], Path(given["store"])))


async def _main(dsn: str, name: str, path: Path) -> None:
    # All else is as shipped: what the demo measures is what a host gets.
    keeper = Keeper(dsn, slot=SLOT, publication=PUBLICATION, application_name=f"keeper {name}")
    _Reporter(keeper)
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(words), sys.stdin
    )
    host = _Host(keeper, _Store(path))
    async with keeper, asyncio.TaskGroup() as group:
        work = group.create_task(host.work())
        while word := (await words.readline()).decode().strip():
            await host.obey(word)
        work.cancel()


class _Reporter:
    """Tells the demo of each record of the journal, and how the keeper is then."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._settled: asyncio.TimerHandle | None = None
        keeper.journal.listen(self._tell)

    def _tell(self, record: Record) -> None:
        tell("record", record=record.as_dict(), **_present(self._keeper))
        if self._settled is not None:
            self._settled.cancel()
        self._settled = asyncio.get_running_loop().call_later(SETTLING, self._tell_present)

    def _tell_present(self) -> None:
        tell("present", **_present(self._keeper))


def _present(keeper: Keeper) -> dict[str, Any]:
    return {
        "at": time.monotonic(),
        "cpu": time.process_time(),
        "health": asdict(keeper.health),
    }


class _Store:
    """What the host has safe: a file, an id a line."""

    def __init__(self, path: Path) -> None:
        # What it must survive is the end of this process, so nothing is synced to disk.
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, ids: list[int]) -> None:
        os.write(self._file, b"".join(b"%d\n" % number for number in ids))


class _Host:
    """The program that uses the keeper."""

    def __init__(self, keeper: Keeper, store: _Store) -> None:
        self._keeper = keeper
        self._store = store
        self._running = asyncio.Event()
        self._running.set()

    async def obey(self, word: str) -> None:
        match word:
            case "cpu":
                tell("present", **_present(self._keeper))
            case "retry now":
                self._keeper.retry_now()
            case "stop":
                self._running.clear()
                await self._keeper.stop()
            case "start":
                self._keeper.start()
                self._running.set()

    async def work(self) -> None:
        """Handle transactions whenever the keeper runs."""
        while await self._running.wait():
            try:
                async for transaction in self._keeper:
                    with suppress(LeaseLost):  # it comes again, here or to the other keeper
                        await self._handle(transaction)
            except SlotFailed:
                self._running.clear()

    async def _handle(self, transaction: Transaction) -> None:
        ids = [
            change.new["id"]
            async for change in transaction
            if isinstance(change, Change) and change.new is not None
        ]
        self._store.add(ids)
        await self._keeper.ack(transaction)


if __name__ == "__main__":
    main()
