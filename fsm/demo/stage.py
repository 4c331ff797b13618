"""Who takes part in the demo, how each of them is at this moment, and who looks on."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from fsm.demo.errors import DemoError
from fsm.demo.ledger import Ledger
from fsm.demo.process import Message, Process
from fsm.demo.report import CONTENTION
from fsm.health import Health

ENDING: Final = 3.0
"""Seconds that a process is given to end by itself."""
SERVER_ENDING: Final = 15.0
"""Seconds that the server is given to stop and to remove its folder."""
POLL: Final = 0.05


class Event(NamedTuple):
    """Something that happened, for whoever looks on."""

    moment: float
    """Seconds since the story began."""
    who: str
    text: str
    state: str | None = None
    """The state that a keeper entered by it."""


class Audience(Protocol):
    """Looks on."""

    def hear(self, event: Event) -> None:
        """Take note of an event, as it happens."""

    async def watch(self, stage: Stage) -> None:
        """Look at the stage until cancelled, or not at all."""


@dataclass
class KeeperOnStage:
    """One keeper and what it has told."""

    name: str
    process: Process
    ledger: Ledger
    killed: bool = False
    records: list[Message] = field(default_factory=list)
    present: Message = field(default_factory=dict)
    """How it was when it last spoke: ``at`` (monotonic seconds), ``cpu`` (seconds), ``health``."""

    @property
    def title(self) -> str:
        """What people call it."""
        return f"keeper {self.name}"

    @property
    def heading(self) -> str:
        """What people call it at the beginning of a sentence."""
        return f"Keeper {self.name}"

    @property
    def state(self) -> str:
        """The state it is in."""
        return str(self.records[-1]["dest"]) if self.records else "Idle"

    @property
    def streams(self) -> bool:
        """COPY BOTH is open."""
        return self.state == "Streaming" and not self.killed

    @property
    def waits(self) -> bool:
        """It is connected, and waits for the lock."""
        return self.state == "Locking" and bool(self.present["health"]["session_open"])

    @property
    def is_blocked(self) -> bool:
        """It backs off because another has the slot."""
        return self.state == "BackingOff" and is_refusal(self.records[-1])

    def why(self) -> str:
        """Its own words, as if it said them now: it is not asked, since answering costs time."""
        if not self.present:
            return "its process is starting."
        health = Health(**self.present["health"])
        passed = time.monotonic() - self.present["at"]
        left = None if health.next_try is None else max(0.0, health.next_try - passed)
        return replace(health, for_seconds=health.for_seconds + passed, next_try=left).why()

    def hear(self, message: Message) -> None:
        """Take in a message."""
        if message["kind"] == "record":
            self.records.append(message["record"])
        self.present = message


def is_refusal(record: Message) -> bool:
    """START_REPLICATION was refused, because another has the slot."""
    entered = record["state"] != record["dest"] == "BackingOff"
    return entered and bool(record["facts"].get("sqlstate") == CONTENTION)


class Stage:
    """The processes of the demo.

    Args:
        audience: who looks on.
        describe: puts a keeper's record into words; None where it is not worth any.
    """

    def __init__(self, audience: Audience, describe: Callable[[Message], str | None]) -> None:
        self.began = time.monotonic()
        self.keepers: dict[str, KeeperOnStage] = {}
        self.server_up = False
        self.server_version: int | None = None
        self.written = 0
        """Rows, as the writer counts."""
        self.rival_since: float | None = None
        self.blocked_since: Message | None = None
        """How the blocked keeper was when it was first refused, while a rival has its slot."""
        self._audience = audience
        self._describe = describe
        self._processes: list[Process] = []
        self._server: Process | None = None
        self._writer: Process | None = None
        self._rival: Process | None = None
        self._dsn = ""
        self._folder: Path | None = None
        self._heard: dict[str, Message] = {}
        self._failure: Exception | None = None
        self._changed = asyncio.Event()

    # What there is to see.

    @property
    def seconds(self) -> float:
        """Since the story began."""
        return time.monotonic() - self.began

    @property
    def streaming(self) -> KeeperOnStage | None:
        """The keeper that streams."""
        return next((keeper for keeper in self.keepers.values() if keeper.streams), None)

    @property
    def blocked(self) -> KeeperOnStage | None:
        """The keeper that backs off because a rival has the slot."""
        return next((keeper for keeper in self.keepers.values() if keeper.is_blocked), None)

    def stored(self) -> Counter[int]:
        """How often each id was stored, over both keepers."""
        total: Counter[int] = Counter()
        for keeper in self.keepers.values():
            keeper.ledger.read_on()
            total += keeper.ledger.stored
        return total

    def say(self, who: str, text: str, state: str | None = None) -> None:
        """Let the audience know of something."""
        self._audience.hear(Event(self.seconds, who, text, state))

    # Waiting.

    async def until(self, condition: Callable[[], object], *, seconds: float, what: str) -> None:
        """Wait until a condition holds; it is looked at whenever a process tells something.

        Raises:
            DemoError: it did not come true in that time, or a process failed meanwhile.
        """
        try:
            async with asyncio.timeout(seconds):
                while not self._holds(condition):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            states = ", ".join(f"{one.title}: {one.why()}" for one in self.keepers.values())
            raise DemoError(f"{what} did not happen within {seconds:g} s. {states}") from error

    def _holds(self, condition: Callable[[], object]) -> bool:
        if self._failure is not None:
            raise self._failure
        return bool(condition())

    async def rest(self, seconds: float) -> None:
        """Let the story stand for a while.

        Raises:
            DemoError: a process failed meanwhile.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._holds(lambda: False):
                    self._changed.clear()
                    await self._changed.wait()

    async def until_stored(self, ids: int, *, seconds: float) -> None:
        """Wait until so many distinct ids are stored, or the time is over."""
        deadline = time.monotonic() + seconds
        while len(self.stored()) < ids and time.monotonic() < deadline:
            await self.rest(POLL)

    # Who takes part.

    async def start_server(self) -> None:
        """Start the server; give it a table, a publication and a slot."""
        self._server = await self._start("server", "the server", {}, self._hear_server)
        await self.until(lambda: self.server_up, seconds=60, what="The start of the server")

    async def start_writer(self) -> None:
        """Start the writer."""
        options = {"dsn": self._dsn}
        self._writer = await self._start("writer", "the writer", options, self._hear_writer)

    async def start_keeper(self, name: str) -> KeeperOnStage:
        """Start a keeper."""
        if self._folder is None:
            raise DemoError("A keeper cannot be started before the server.")
        path = self._folder / f"stored-by-{name}"
        options = {"dsn": self._dsn, "name": name, "store": str(path)}
        process = await self._start(
            "keeper", f"keeper {name}", options, lambda message: self._hear_keeper(name, message)
        )
        self.keepers[name] = KeeperOnStage(name, process, Ledger(path))
        return self.keepers[name]

    async def start_rival(self) -> None:
        """Start the rival, and wait until it has the slot."""
        options = {"dsn": self._dsn}
        self._rival = await self._start("rival", "the rival", options, self._hear_any)
        await self.until(lambda: "holding" in self._heard, seconds=20, what="The rival's coup")

    async def end_rival(self) -> None:
        """Let the rival leave, and wait until it has."""
        if self._rival is not None:
            self._rival.expect_end()
            self._rival.say("leave")
            await self.until(lambda: "left" in self._heard, seconds=10, what="The rival's leaving")
            self.rival_since = None

    async def stop_writer(self) -> None:
        """Let the writer finish its last transaction."""
        if self._writer is not None:
            self._writer.expect_end()
            self._writer.say("stop")
            await self.until(lambda: "stopped" in self._heard, seconds=10, what="The writer's end")

    async def ask_server(self, word: str, answer: str) -> Message:
        """Have the server do something; give its answer."""
        if self._server is None:
            raise DemoError("The server was not started.")
        self._heard.pop(answer, None)
        self._server.say(word)
        await self.until(lambda: answer in self._heard, seconds=60, what=f"The server's {word}")
        return self._heard[answer]

    async def ask_how(self, keeper: KeeperOnStage) -> Message:
        """Have a keeper say how it is at this moment."""
        before = keeper.present
        keeper.process.say("cpu")
        await self.until(
            lambda: keeper.present is not before, seconds=10, what=f"An answer of {keeper.title}"
        )
        return keeper.present

    async def close(self) -> None:
        """End every process, the server last, and see that its folder is gone."""
        others = [process for process in self._processes if process is not self._server]
        await asyncio.gather(*(process.close(ENDING) for process in others))
        if self._server is not None:
            await self._server.close(SERVER_ENDING)
        await self._remove_folder()

    async def _remove_folder(self) -> None:
        """The server's process removes it, unless somebody killed that process."""
        folder = self._folder
        if folder is None:
            return
        for _ in range(int(SERVER_ENDING / POLL)):
            if not folder.exists():
                return
            # Its watcher ends the server; an initdb that is left runs on for a moment.
            if not (folder / "data" / "postmaster.pid").exists():
                shutil.rmtree(folder, ignore_errors=True)
            await asyncio.sleep(POLL)
        shutil.rmtree(folder, ignore_errors=True)

    # What they tell.

    async def _start(
        self, module: str, name: str, options: dict[str, Any], hear: Callable[[Message], None]
    ) -> Process:
        def hear_and_wake(message: Message) -> None:
            hear(message)
            self._changed.set()

        process = await Process.start(
            module, name=name, options=options, hear=hear_and_wake, fail=self.fail
        )
        self._processes.append(process)
        return process

    def fail(self, error: Exception) -> None:
        """Let the story end with an error; the first one counts."""
        self._failure = self._failure or error
        self._changed.set()

    def _hear_any(self, message: Message) -> None:
        self._heard[message["kind"]] = message
        if message["kind"] == "holding":
            self.rival_since = time.monotonic()

    def _hear_server(self, message: Message) -> None:
        self._heard[message["kind"]] = message
        match message["kind"]:
            case "folder":
                self._folder = Path(message["path"])
            case "ready":
                self._dsn = message["dsn"]
                self.server_version = message["version"]
                self.server_up = True
            case "restarted":
                self.server_up = True
            case "failed":
                raise DemoError(message["text"])

    def _hear_writer(self, message: Message) -> None:
        self._heard[message["kind"]] = message
        if message["kind"] == "written":
            self.written = message["rows"]

    def _hear_keeper(self, name: str, message: Message) -> None:
        keeper = self.keepers[name]
        keeper.hear(message)
        if message["kind"] != "record":
            return
        record = message["record"]
        if is_refusal(record) and self.blocked_since is None:
            self.blocked_since = message
        text = self._describe(record)
        if text is not None:
            self.say(keeper.title, text, record["dest"])
