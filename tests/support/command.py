"""The command ``slotkeeper run`` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).resolve().parents[2]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without libpq's variables, and with our package found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


class Command:
    """``with Command("run", dsn, "--slot", ..)``: killed at the end where it still runs.

    Args:
        arguments: of ``python -m fsm``.
        env: variables to add.
        reading: its stdout is read; otherwise nobody ever reads it.
    """

    def __init__(
        self, *arguments: str, env: Mapping[str, str] | None = None, reading: bool = True
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fsm", *arguments],
            cwd="/",
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._threads = [self._pump(self.process.stderr, self.err)]
        if reading:
            self._threads.append(self._pump(self.process.stdout, self.out))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _pump(self, stream: IO[str] | None, lines: list[str]) -> threading.Thread:
        def pump() -> None:
            assert stream is not None
            for line in stream:
                lines.append(line.rstrip("\n"))  # noqa: PERF401  (each is to be seen at once)

        thread = threading.Thread(target=pump)
        thread.start()
        return thread

    @property
    def changes(self) -> list[dict[str, Any]]:
        """What it has written to stdout."""
        return [json.loads(line) for line in tuple(self.out)]

    @property
    def output(self) -> str:
        """All that it has written."""
        return "\n".join([*self.out, *self.err])

    def until(self, condition: Callable[[Self], object], *, seconds: float = 30.0) -> None:
        """Wait for a condition.

        Raises:
            AssertionError: it did not come true in time; the message holds what was written.
        """
        deadline = time.monotonic() + seconds
        while not condition(self):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s; it wrote:\n{self.output}")
            time.sleep(0.02)

    def until_streaming(self) -> None:
        self.until(lambda one: any("-> Streaming" in line for line in tuple(one.err)))

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self, *, seconds: float = 30.0) -> int:
        """Wait for its end, and for all that it wrote.

        Raises:
            AssertionError: it has not ended in time.
        """
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it runs on after {seconds} s:\n{self.output}") from None
        for thread in self._threads:
            thread.join()
        return code
