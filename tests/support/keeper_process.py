"""A keeper in a process of its own, to be killed, frozen and watched.

It prints a JSON line for each record of its journal, with CLOCK_MONOTONIC, which all processes
share; and reads words from standard input: ``retry``, ``stop``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from fsm import Keeper, Record

ROOT = Path(__file__).parent.parent.parent
TICKS = os.sysconf("SC_CLK_TCK")


def _tell(record: Record) -> None:
    line = {
        "at": time.monotonic(),
        "state": record.state,
        "trigger": record.trigger,
        "dest": record.dest,
        "class": record.error_class,
        "delay": record.delay,
        "detail": record.detail,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def _main(options: dict[str, Any]) -> None:
    acknowledge = options.pop("acknowledge", True)
    keeper = Keeper(**options)
    keeper.journal.listen(_tell)
    loop = asyncio.get_running_loop()
    words = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    async with keeper, asyncio.TaskGroup() as group:
        host = group.create_task(_host(keeper, acknowledge=acknowledge))
        while word := (await words.readline()).decode().strip():
            if word == "retry":
                keeper.retry_now()
            else:
                await keeper.stop()
                break
        host.cancel()


async def _host(keeper: Keeper, *, acknowledge: bool) -> None:
    async for transaction in keeper:
        async for _ in transaction:
            pass
        if acknowledge:
            await keeper.ack(transaction)


class KeeperProcess:
    """Runs a keeper, and knows what it has reported.

    Args:
        options: the arguments of ``fsm.Keeper``, as JSON can carry them; and ``acknowledge``,
            False for a host that reads and never acknowledges.
    """

    def __init__(self, **options: Any) -> None:
        self.records: list[Mapping[str, Any]] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.keeper_process", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        if self._process.stdout is None:
            return
        for line in self._process.stdout:
            with self._changed:
                self.records.append(json.loads(line))
                self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def say(self, word: str) -> None:
        """Send ``retry`` or ``stop``."""
        if self._process.stdin is not None:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait_for(self, state: str, *, after: float = 0.0, seconds: float = 60.0) -> float:
        """Wait until it entered ``state`` later than ``after``; give when that was (monotonic)."""

        def entered() -> float | None:
            for record in self.records:
                if record["dest"] == state != record["state"] and record["at"] >= after:
                    return float(record["at"])
            return None

        with self._changed:
            self._changed.wait_for(lambda: entered() is not None, timeout=seconds)
            moment = entered()
        if moment is None:
            raise TimeoutError(f"not in {state} within {seconds} s: {self.records[-5:]}")
        return moment

    def wait_for_trigger(self, trigger: str, *, after: float = 0.0, seconds: float = 60.0) -> float:
        """Wait until ``trigger`` came later than ``after``; give when that was (monotonic)."""

        def came() -> float | None:
            for record in self.records:
                if record["trigger"] == trigger and record["at"] >= after:
                    return float(record["at"])
            return None

        with self._changed:
            self._changed.wait_for(lambda: came() is not None, timeout=seconds)
            moment = came()
        if moment is None:
            raise TimeoutError(f"no {trigger} within {seconds} s: {self.records[-5:]}")
        return moment

    def cpu_seconds(self) -> float:
        """Give the processor time it has used so far (user and system)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))
