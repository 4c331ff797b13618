"""A standby was promoted: its history parts from the one that was followed."""

from __future__ import annotations

import asyncio

import pytest

from fsm import LeaseLost, SlotFailed
from fsm.testing import MemoryServer, VirtualClock
from tests.support.keepers import Host, keeper_of, rows_of


@pytest.mark.asyncio
async def test_what_the_host_has_of_a_lost_history_is_not_its_to_acknowledge() -> None:
    clock = VirtualClock()
    server = MemoryServer(clock)
    async with keeper_of(server) as keeper:
        await keeper.wait_for("Streaming")
        branch = server.wal_position
        server.commit({"id": "lost"})
        transaction = await anext(aiter(keeper))
        assert await rows_of(transaction) == [{"id": "lost"}]
        server.promote_standby(lost_from=branch)
        server.commit({"id": "2"})
        server.commit({"id": "3"})
        await clock.advance(5)
        assert keeper.state == "Streaming"
        with pytest.raises(LeaseLost):
            await keeper.ack(transaction)
        host = Host(keeper)
        reading = host.begin()
        await clock.advance(1)
        assert host.rows == [{"id": "2"}, {"id": "3"}]
        reading.cancel()
        await asyncio.wait({reading})


@pytest.mark.asyncio
async def test_a_standby_that_lacks_what_was_acknowledged_is_a_divergence() -> None:
    clock = VirtualClock()
    server = MemoryServer(clock)
    async with keeper_of(server) as keeper:
        await keeper.wait_for("Streaming")
        branch = server.wal_position
        server.commit({"id": "1"})
        transaction = await anext(aiter(keeper))
        await rows_of(transaction)
        await keeper.ack(transaction)
        server.promote_standby(lost_from=branch)
        for number in range(9):
            server.commit({"id": str(number)})
        await clock.advance(5)
        with pytest.raises(SlotFailed) as failed:
            await anext(aiter(keeper))
    assert failed.value.error_class == "divergence"


@pytest.mark.asyncio
async def test_a_standby_that_has_all_that_was_acknowledged_is_gone_on_with() -> None:
    clock = VirtualClock()
    server = MemoryServer(clock)
    async with keeper_of(server) as keeper:
        host = Host(keeper)
        reading = host.begin()
        await keeper.wait_for("Streaming")
        server.commit({"id": "1"})
        await clock.advance(1)
        server.promote_standby(lost_from=server.wal_position)
        server.commit({"id": "2"})
        await clock.advance(5)
        assert host.rows == [{"id": "1"}, {"id": "2"}]
        reading.cancel()
        await asyncio.wait({reading})


@pytest.mark.asyncio
async def test_that_another_moved_the_slot_is_in_the_journal() -> None:
    clock = VirtualClock()
    server = MemoryServer(clock)
    async with keeper_of(server) as keeper:
        await keeper.wait_for("Streaming")
        server.keepalive()
        server.commit({"id": "1"})
        server.confirm(server.wal_position)
        server.sever()
        await clock.advance(5)
        begun = [record for record in keeper.journal if record.trigger == "stream_started"]
        assert begun[-1].facts["moved_by_another"]["to"] == server.wal_position
