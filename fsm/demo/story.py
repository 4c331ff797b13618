"""What happens in the demo, scene by scene."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Final

from fsm.demo.errors import DemoError
from fsm.demo.process import Message
from fsm.demo.report import Account, Blocked, Figures, account_for, visited, walked
from fsm.demo.stage import Audience, KeeperOnStage, Stage, is_refusal
from fsm.machine.loader import shipped

CALM: Final = 2.0
"""Seconds for which a scene stands when all is well."""
BLOCKED_FOR: Final = 10.5
"""Seconds for which the rival holds the slot, counted from the first refusal."""
PATIENCE: Final = 4.0
"""Seconds of backoff that are watched after the rival left; then the host says retry_now()."""
LONG: Final = 30.0
"""Seconds after which something that should happen does not happen any more."""
DRAINING: Final = 15.0
"""Seconds in which the last rows arrive."""

NARRATOR: Final = "demo"


async def play(audience: Audience) -> Figures:
    """Play the whole story; however it ends, no process and no file of it is left.

    Args:
        audience: who looks on.

    Returns:
        What was found.

    Raises:
        DemoError: a process failed, or something did not happen in time.
    """
    stage = Stage(audience, describe)
    watching = asyncio.create_task(_watch(audience, stage))
    try:
        return await _Story(stage).play()
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await _to_its_end(stage.close())


async def _to_its_end(closing: Coroutine[None, None, None]) -> None:
    """Whoever is impatient now would leave something behind."""
    task = asyncio.create_task(closing)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    task.result()


async def _watch(audience: Audience, stage: Stage) -> None:
    try:
        await audience.watch(stage)
    except Exception as error:  # noqa: BLE001  (whoever cannot look on ends the story)
        stage.fail(error)


class _Story:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def play(self) -> Figures:
        await self._begin()
        blocked = await self._meet_a_rival()
        await self._restart_the_server()
        killed = await self._give_the_slot_to_a()
        survivor, takeover = await self._kill(killed)
        await self._finish_writing()
        await self._drop_the_publication(survivor)
        return await self._count(survivor, blocked, takeover)

    def _tell(self, text: str) -> None:
        self._stage.say(NARRATOR, text)

    async def _begin(self) -> None:
        stage = self._stage
        self._tell("A Postgres server starts in a temporary folder.")
        await stage.start_server()
        self._tell(f"Postgres {stage.server_version} is up. A writer and two keepers of one slot.")
        await stage.start_writer()
        first = await stage.start_keeper("A")
        await stage.until(lambda: first.streams, seconds=LONG, what="The first streaming")
        second = await stage.start_keeper("B")
        await stage.until(lambda: second.waits, seconds=LONG, what="Keeper B's waiting")
        self._tell("Keeper A streams; keeper B waits for the advisory lock.")
        await stage.rest(CALM)

    async def _meet_a_rival(self) -> Blocked:
        stage = self._stage
        self._tell("A rival that ignores the lock throws A's walsender out and takes the slot.")
        await stage.start_rival()
        await stage.until(lambda: stage.blocked_since, seconds=LONG, what="A refusal (55006)")
        keeper, before = self._who_is_blocked()
        self._tell(
            f"The lock, free with A's session, is {keeper.title}'s; the slot is the rival's."
        )
        await stage.rest(BLOCKED_FOR - (time.monotonic() - before["at"]))
        after = await stage.ask_how(keeper)
        blocked = _measure(keeper, before, after)
        self._tell(
            f"In {blocked.seconds:.1f} s: {blocked.attempts} attempts, "
            f"{blocked.cpu_percent:.2f} % CPU. The rival leaves."
        )
        await stage.end_rival()
        await self._await_recovery(keeper)
        stage.blocked_since = None
        await stage.rest(CALM)
        return blocked

    def _who_is_blocked(self) -> tuple[KeeperOnStage, Message]:
        """The keeper that was refused first, and how it was then."""
        before = self._stage.blocked_since
        for keeper in self._stage.keepers.values():
            if before is not None and before["record"] in keeper.records:
                return keeper, before
        raise DemoError("No keeper met the rival.")

    async def _await_recovery(self, keeper: KeeperOnStage) -> None:
        stage = self._stage
        deadline = time.monotonic() + PATIENCE
        while not stage.streaming and time.monotonic() < deadline:
            await stage.rest(0.05)
        if not stage.streaming:
            self._tell(f"{keeper.heading} would wait on; its host says retry_now().")
            keeper.process.say("retry now")
        await stage.until(lambda: stage.streaming, seconds=LONG, what="Streaming after the rival")
        await self._until_one_streams_and_one_waits()

    async def _until_one_streams_and_one_waits(self) -> None:
        stage = self._stage
        await stage.until(
            lambda: stage.streaming and any(one.waits for one in stage.keepers.values()),
            seconds=LONG,
            what="That one keeper streams and the other waits",
        )

    async def _restart_the_server(self) -> None:
        stage = self._stage
        self._tell("The server is restarted.")
        stage.server_up = False
        await stage.ask_server("restart", "restarted")
        await self._until_one_streams_and_one_waits()
        await stage.rest(CALM)

    async def _give_the_slot_to_a(self) -> KeeperOnStage:
        """Both came back by a delay with jitter, so either may have been first."""
        stage = self._stage
        first, second = stage.keepers["A"], stage.keepers["B"]
        if not first.streams:
            self._tell("Keeper B came back first. Its host stops it, in order: A takes over.")
            second.process.say("stop")
            await stage.until(
                lambda: first.streams and second.state == "Idle", seconds=LONG, what="The handover"
            )
            second.process.say("start")
            await self._until_one_streams_and_one_waits()
            await stage.rest(CALM / 2)
        return first

    async def _kill(self, keeper: KeeperOnStage) -> tuple[KeeperOnStage, float]:
        """Kill the keeper that streams; give the other one, and how long it took in ms."""
        stage = self._stage
        survivor = next(one for one in stage.keepers.values() if one is not keeper)
        self._tell(f"{keeper.heading} is killed: SIGKILL.")
        keeper.killed = True
        killed_at = time.monotonic()
        keeper.process.kill()
        await stage.until(lambda: survivor.streams, seconds=LONG, what="The takeover")
        # asyncio's clock is CLOCK_MONOTONIC, which all processes share.
        takeover = 1000 * (float(survivor.records[-1]["mono"]) - killed_at)
        self._tell(f"{survivor.heading} streams {takeover:.1f} ms after the kill.")
        await stage.rest(CALM)
        return survivor, takeover

    async def _finish_writing(self) -> None:
        stage = self._stage
        await stage.stop_writer()
        written = (await stage.ask_server("count", "counted"))["written"]
        stage.written = written
        await stage.until_stored(written, seconds=DRAINING)
        self._tell(f"The writer is done: {written} rows, {len(stage.stored())} received.")

    async def _drop_the_publication(self, survivor: KeeperOnStage) -> None:
        stage = self._stage
        self._tell("The publication is dropped.")
        await stage.ask_server("drop publication", "dropped")
        await stage.until(
            lambda: survivor.state == "Failed", seconds=LONG, what="Failed without a publication"
        )
        await stage.rest(CALM)
        survivor.process.say("stop")
        await stage.until(lambda: survivor.state == "Idle", seconds=LONG, what="The last stop")

    async def _count(self, survivor: KeeperOnStage, blocked: Blocked, takeover: float) -> Figures:
        counted = await self._stage.ask_server("count", "counted")
        account: Account = account_for(counted["ids"], self._stage.stored())
        path = walked(survivor.records)
        return Figures(
            written=counted["written"],
            received=account.received,
            lost=account.lost,
            received_twice=account.received_twice,
            blocked=blocked,
            takeover_ms=takeover,
            states_visited=visited(path),
            path=path,
        )


def _measure(keeper: KeeperOnStage, before: Message, after: Message) -> Blocked:
    refusals = [
        record
        for record in keeper.records
        if is_refusal(record) and record["seq"] >= before["record"]["seq"]
    ]
    return Blocked(
        seconds=after["at"] - before["at"],
        attempts=len(refusals),
        cpu_seconds=after["cpu"] - before["cpu"],
    )


def describe(record: Message) -> str | None:
    """Put a record of a keeper's journal into words; None where it is not worth any."""
    if record["state"] == record["dest"]:
        return None
    if record["state"] == "BackingOff" and record["dest"] == "Acquiring":
        return None  # what became of it follows at once
    text = f"{record['state']} -> {record['dest']} ({record['trigger']})"
    if not record["detail"]:
        return text
    sqlstate = record["facts"].get("sqlstate")
    named = f"{record['error_class']} {sqlstate}" if sqlstate else record["error_class"]
    text = f"{text}: attempt {record['attempt']}, {named}{_reason(record)}."
    if record["dest"] == "Failed":
        return f"{text} {record['facts'].get('remedy', '')}".rstrip()
    if record["delay"] is None:
        return text
    return f"{text} Next try in {record['delay']:.1f} s, {_drawn(record)}."


def _reason(record: Message) -> str:
    """Why; a slot that is still held was explained at the first attempt."""
    if is_refusal(record) and record["attempt"] > 1:
        return ""
    return f": {record['detail'].rstrip('.')}"


def _drawn(record: Message) -> str:
    policy = shipped().policy(f"error_{record['action']}", record["error_class"])
    return f"of at most {policy.ceiling(record['attempt']):g}"
