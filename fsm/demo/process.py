"""One process of the demo, seen from the demo."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, Self, TypeAlias

from fsm.demo.errors import DemoError

Message: TypeAlias = dict[str, Any]
"""What a process tells: its ``kind``, and what belongs to it."""

LONGEST_MESSAGE: Final = 4 * 1024 * 1024
"""Bytes."""
_TAIL: Final = 20


class Process:
    """A process that is told words and tells messages; see ``fsm.demo.child``.

    It has a session of its own, so that Ctrl-C reaches the demo alone; and it ends when the demo
    does, because then its stdin ends.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self.name = name
        self._process = process
        self._errors = errors
        self._expected_to_end = False
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        module: str,
        *,
        name: str,
        options: Message,
        hear: Callable[[Message], None],
        fail: Callable[[Exception], None],
    ) -> Self:
        """Start a module of ``fsm.demo``.

        Args:
            module: its last name.
            name: how people know it.
            options: passed to it; what JSON can carry.
            hear: called with each message.
            fail: called with what goes wrong, among it an end that nobody asked for.
        """
        errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed when the process has ended)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", f"fsm.demo.{module}"),
            json.dumps(options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=_environment(),
            start_new_session=True,
            limit=LONGEST_MESSAGE,
        )
        started = cls(name, process, errors)
        started._reader = asyncio.create_task(started._read(hear, fail))
        return started

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def _read(
        self, hear: Callable[[Message], None], fail: Callable[[Exception], None]
    ) -> None:
        stdout = self._process.stdout
        try:
            while stdout is not None and (line := await stdout.readline()):
                if line.endswith(b"\n"):  # a killed process may leave half of one
                    hear(json.loads(line))
        except Exception as error:  # noqa: BLE001  (the story must learn of it, whatever it is)
            fail(error)
        code = await self._process.wait()
        if not self._expected_to_end:
            fail(DemoError(f"{self.name} ended by itself, with status {code}.\n{self._tail()}"))

    def say(self, word: str) -> None:
        """Send a word."""
        if self._process.stdin is not None:
            self._process.stdin.write(f"{word}\n".encode())

    def expect_end(self) -> None:
        """From now on it may end."""
        self._expected_to_end = True

    def kill(self) -> None:
        """SIGKILL."""
        self._expected_to_end = True
        with suppress(ProcessLookupError):
            self._process.kill()

    async def close(self, seconds: float) -> None:
        """End its stdin and wait until it has ended; kill it where it takes longer than that."""
        self._expected_to_end = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(seconds):
                await self._ended()
        except TimeoutError:
            self.kill()
            await self._ended()
        self._errors.close()

    async def _ended(self) -> None:
        await self._process.wait()
        if self._reader is not None:
            await asyncio.wait({self._reader})

    def _tail(self) -> str:
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-_TAIL:])


def _environment() -> dict[str, str]:
    """Let a process find the packages that the demo itself finds.

    libpq's variables are left out, since they would change how it connects.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "PGBIN" or not name.startswith("PG")
    }
    return {**kept, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
