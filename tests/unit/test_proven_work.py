"""Failures are forgotten when work is proven, and only then."""

from __future__ import annotations

import asyncio

import pytest

from fsm.testing import MemoryServer, VirtualClock
from fsm.testing.session import refusal
from tests.support.keepers import keeper_of


@pytest.mark.asyncio
async def test_a_stream_on_which_the_server_says_nothing_proves_no_work() -> None:
    clock = VirtualClock()
    server = MemoryServer(clock)
    server.refuse("start", refusal("start", "57P03", "InitPostgres"))
    server.mute = True
    async with keeper_of(server, lease=60.0) as keeper:
        await clock.advance(25)
        assert keeper.state == "Streaming"
        assert keeper.health.attempt == 1
        server.mute = False
        await clock.advance(25)
        assert keeper.state == "Streaming"
        assert keeper.health.attempt is None


@pytest.mark.asyncio
async def test_a_stop_that_is_followed_by_a_start_still_comes_back() -> None:
    clock = VirtualClock()
    server = MemoryServer(clock)
    async with keeper_of(server) as keeper:
        await keeper.wait_for("Streaming")
        task = asyncio.create_task(keeper.stop())
        await asyncio.sleep(0)
        keeper.start()
        await clock.advance(1)
        assert task.done()
        await task
        assert keeper.state == "Streaming"


@pytest.mark.asyncio
async def test_a_night_as_a_healthy_standby_spends_no_budget() -> None:
    clock = VirtualClock()
    server = MemoryServer(clock)
    holder = server.session()
    await holder.open()
    assert await holder.lock(1.0)
    async with keeper_of(server) as waiting:
        server.refuse("lock", refusal("lock", "53200", "LockAcquireExtended"))
        await clock.advance(300)
        assert waiting.state == "Locking"
        await clock.advance(2 * 3600)
        server.refuse("lock", refusal("lock", "53200", "LockAcquireExtended"))
        await clock.advance(300)
        assert waiting.state == "Locking"
        assert waiting.health.attempt == 2
