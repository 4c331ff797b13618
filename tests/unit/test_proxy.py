from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

import pytest

from tests.support.proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOST = "127.0.0.1"
SILENCE = 0.15


class Echo:
    """An echo server that remembers how its connections ended."""

    def __init__(self) -> None:
        self.received = b""
        self.ends: asyncio.Queue[str] = asyncio.Queue()
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            while data := await reader.read(65_536):
                self.received += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            self.ends.put_nowait("reset")
        else:
            self.ends.put_nowait("fin")
        writer.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, data: bytes) -> bytes:
        self.writer.write(data)
        return await self.reader.readexactly(len(data))

    async def hears_nothing(self) -> bool:
        try:
            await asyncio.wait_for(self.reader.read(1), SILENCE)
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Echo, FaultProxy]]:
    async with Echo() as echo, FaultProxy(HOST, echo.port) as proxy:
        yield echo, proxy


async def soon(value: asyncio.Queue[str]) -> str:
    return await asyncio.wait_for(value.get(), 5)


@pytest.mark.asyncio
async def test_bytes_pass_both_ways_unchanged() -> None:
    data = bytes(range(256)) * 8_000
    async with proxied() as (echo, proxy), connected(proxy.port) as client:
        assert await client.ask(data) == data
        assert echo.received == data
        assert proxy.sent == {"to_client": len(data), "to_server": len(data)}


@pytest.mark.asyncio
async def test_a_clients_end_reaches_the_server() -> None:
    async with proxied() as (echo, proxy):
        async with connected(proxy.port) as client:
            await client.ask(b"x")
        assert await soon(echo.ends) == "fin"


@pytest.mark.asyncio
async def test_a_black_hole_holds_bytes_and_delivers_them_when_it_is_over() -> None:
    async with proxied() as (echo, proxy), connected(proxy.port) as client:
        await client.ask(b"before")
        proxy.black_hole()
        client.writer.write(b"inside")
        assert await client.hears_nothing()
        assert echo.received == b"before"
        proxy.pass_through()
        assert await client.reader.readexactly(6) == b"inside"


@pytest.mark.asyncio
async def test_a_black_hole_accepts_new_clients_and_says_nothing() -> None:
    async with proxied() as (echo, proxy):
        proxy.black_hole()
        async with connected(proxy.port) as client:
            client.writer.write(b"hello")
            assert await client.hears_nothing()
            assert echo.received == b""
            assert proxy.accepted == 1


@pytest.mark.asyncio
async def test_a_black_hole_hides_the_end_of_the_other_side() -> None:
    async with proxied() as (echo, proxy):
        async with connected(proxy.port) as client:
            await client.ask(b"x")
            proxy.black_hole()
        await asyncio.sleep(SILENCE)
        assert echo.ends.empty()
        proxy.pass_through()
        assert await soon(echo.ends) in {"fin", "reset"}


@pytest.mark.asyncio
async def test_a_stall_towards_the_server_leaves_the_other_direction_open() -> None:
    async with proxied() as (echo, proxy), connected(proxy.port) as client:
        await client.ask(b"x")
        proxy.stall_client_to_server()
        client.writer.write(b"held")
        assert await client.hears_nothing()
        assert echo.received == b"x"
        echo._writers[0].write(b"from the server")
        assert await client.reader.readexactly(15) == b"from the server"


@pytest.mark.asyncio
async def test_a_stall_towards_the_client_lets_the_server_receive() -> None:
    async with proxied() as (echo, proxy), connected(proxy.port) as client:
        await client.ask(b"x")
        proxy.stall_server_to_client()
        client.writer.write(b"there")
        assert await client.hears_nothing()
        assert echo.received == b"xthere"


@pytest.mark.asyncio
async def test_refusal_turns_new_clients_away_and_keeps_the_open_ones() -> None:
    async with proxied() as (_, proxy), connected(proxy.port) as client:
        await client.ask(b"x")
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, proxy.port)
        assert await client.ask(b"still here") == b"still here"


@pytest.mark.asyncio
async def test_clients_are_let_in_again_on_the_same_port_after_a_refusal() -> None:
    async with proxied() as (_, proxy):
        port = proxy.port
        proxy.refuse()
        proxy.pass_through()
        async with connected(port) as client:
            assert await client.ask(b"x") == b"x"


@pytest.mark.asyncio
async def test_a_reset_is_a_reset_on_both_sides() -> None:
    async with proxied() as (echo, proxy), connected(proxy.port) as client:
        await client.ask(b"x")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await client.reader.read(1)
        assert await soon(echo.ends) == "reset"


@pytest.mark.asyncio
async def test_a_reset_acts_inside_a_black_hole() -> None:
    async with proxied() as (_, proxy), connected(proxy.port) as client:
        await client.ask(b"x")
        proxy.black_hole()
        client.writer.write(b"held")
        assert await client.hears_nothing()
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await client.reader.read(1)


@pytest.mark.asyncio
async def test_a_close_is_an_orderly_end_on_both_sides() -> None:
    async with proxied() as (echo, proxy), connected(proxy.port) as client:
        await client.ask(b"x")
        proxy.close()
        assert await client.reader.read(1) == b""
        assert await soon(echo.ends) == "fin"


@pytest.mark.asyncio
async def test_a_close_is_orderly_although_bytes_are_unread() -> None:
    async with proxied() as (_, proxy), connected(proxy.port) as client:
        await client.ask(b"x")
        proxy.stall_client_to_server()
        client.writer.write(b"y" * 300_000)
        assert await client.hears_nothing()
        proxy.close()
        assert await client.reader.read(1) == b""


@pytest.mark.asyncio
async def test_after_a_reset_a_new_client_is_served() -> None:
    async with proxied() as (_, proxy):
        async with connected(proxy.port) as client:
            await client.ask(b"x")
            proxy.reset()
        async with connected(proxy.port) as client:
            assert await client.ask(b"y") == b"y"


@pytest.mark.asyncio
async def test_a_delay_holds_each_direction() -> None:
    async with proxied() as (_, proxy), connected(proxy.port) as client:
        await client.ask(b"x")
        proxy.delay(0.1)
        begin = time.monotonic()
        await client.ask(b"y")
        assert 0.2 <= time.monotonic() - begin < 2


@pytest.mark.asyncio
async def test_a_throttle_limits_bytes_per_second() -> None:
    async with proxied() as (_, proxy), connected(proxy.port) as client:
        proxy.throttle(100_000)
        begin = time.monotonic()
        await client.ask(b"x" * 30_000)
        assert 0.25 <= time.monotonic() - begin < 3


@pytest.mark.asyncio
@pytest.mark.parametrize("count", [0, 1, 70_000])
async def test_a_cut_ends_the_connection_after_exactly_so_many_bytes(count: int) -> None:
    async with proxied() as (_, proxy), connected(proxy.port) as client:
        await client.ask(b"before")
        proxy.cut_after(count)
        client.writer.write(b"y" * 100_000)
        assert await asyncio.wait_for(client.reader.read(-1), 5) == b"y" * count


@pytest.mark.asyncio
async def test_a_cut_acts_once() -> None:
    async with proxied() as (_, proxy):
        proxy.cut_after(1)
        async with connected(proxy.port) as client:
            client.writer.write(b"ab")
            assert await client.reader.read(-1) == b"a"
        async with connected(proxy.port) as client:
            assert await client.ask(b"ab") == b"ab"


@pytest.mark.asyncio
async def test_a_server_that_is_gone_resets_the_client() -> None:
    async with Echo() as echo:
        port = echo.port
    async with FaultProxy(HOST, port) as proxy, connected(proxy.port) as client:
        with pytest.raises(ConnectionResetError):
            await client.reader.read(1)


@pytest.mark.asyncio
async def test_leaving_the_proxy_ends_every_connection_and_frees_the_port() -> None:
    async with Echo() as echo:
        async with FaultProxy(HOST, echo.port) as proxy:
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            await Client(reader, writer).ask(b"x")
            proxy.black_hole()
            silent, silent_writer = await asyncio.open_connection(HOST, proxy.port)
        assert proxy.connections == 0
        assert await reader.read(1) == b""
        assert await silent.read(1) == b""
        for each in (writer, silent_writer):
            each.close()
            await each.wait_closed()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, proxy.port))
