"""A TCP proxy whose network can be broken at run time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Literal, Self, TypeAlias

from fsm.embedded import HOST, free_port

Direction: TypeAlias = Literal["to_client", "to_server"]
Ending: TypeAlias = Literal["over", "fin", "reset"]

_CHUNK = 65_536
_PORT_TRIES = 20


class FaultProxy:
    """Forwards TCP connections to a server, with faults.

    ``async with FaultProxy(server.host, server.port) as proxy``, then connect to ``proxy.port`` of
    127.0.0.1. A fault acts at once, on open connections and new ones. The proxy's kernel goes on
    acknowledging at TCP level, so keepalives and tcp_user_timeout do not notice a black hole here.

    Args:
        host: the server's address.
        port: the server's port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._listener: socket.socket | None = None
        self._port = 0
        self._links: dict[asyncio.Task[None], _Link] = {}
        self._gates: dict[Direction, asyncio.Event] = {
            "to_client": asyncio.Event(),
            "to_server": asyncio.Event(),
        }
        self._delay = 0.0
        self._rate: float | None = None
        self._cut: int | None = None
        self.accepted = 0
        """Connections accepted since the start."""
        self.sent: dict[Direction, int] = {"to_client": 0, "to_server": 0}
        """Bytes forwarded since the start."""

    async def __aenter__(self) -> Self:
        self.pass_through()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.refuse()
        tasks = list(self._links)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        """Where clients connect, the same through all faults."""
        return self._port

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._links)

    def pass_through(self) -> None:
        """No fault: what was held is delivered, and refused clients are let in again."""
        self._delay = 0.0
        self._rate = None
        self._cut = None
        for gate in self._gates.values():
            gate.set()
        if self._listener is None:
            self._listen()

    def black_hole(self) -> None:
        """Keep every connection open and forward nothing; accept new ones and say nothing."""
        for gate in self._gates.values():
            gate.clear()

    def stall_client_to_server(self) -> None:
        """Forward nothing that clients send; an end of their side is held as well."""
        self._gates["to_server"].clear()

    def stall_server_to_client(self) -> None:
        """Forward nothing that the server sends; an end of its side is held as well."""
        self._gates["to_client"].clear()

    def refuse(self) -> None:
        """Let no new client in: ECONNREFUSED. Open connections go on."""
        if self._listener is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self._listener = None

    def reset(self) -> None:
        """Break every open connection with RST, on both sides. New ones are let in."""
        for link in self._links.values():
            link.end("reset")

    def close(self) -> None:
        """End every open connection with FIN, on both sides. New ones are let in."""
        for link in self._links.values():
            link.end("fin")

    def delay(self, seconds: float) -> None:
        """Hold each chunk, of at most 64 KiB and in each direction, for some seconds."""
        self._delay = seconds

    def throttle(self, rate: float) -> None:
        """Forward at most ``rate`` bytes a second, per connection and direction."""
        self._rate = rate

    def cut_after(self, count: int) -> None:
        """Forward ``count`` more bytes to clients, then end the connection at that byte with FIN.

        Acts once: connections after it are forwarded whole.
        """
        self._cut = count

    def _listen(self) -> None:
        for _ in range(_PORT_TRIES):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.settimeout(0)
            port = self._port or free_port()
            try:
                listener.bind((HOST, port))
                listener.listen(128)
            except OSError:
                listener.close()
                continue
            self._port = port
            self._listener = listener
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)
            return
        raise OSError(f"port {self._port or '(any)'} of {HOST} cannot be listened on")

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:  # it was gone again
            return
        self.accepted += 1
        link = _Link(self, _prepared(client))
        task = asyncio.get_running_loop().create_task(link.run(self._upstream))
        self._links[task] = link
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        # Not in run's own finally: a task cancelled before its first step never gets there.
        self._links.pop(task).close_sockets()

    async def passage(self, direction: Direction, size: int) -> None:
        """Wait until a chunk of this size may be forwarded."""
        if self._delay:
            await asyncio.sleep(self._delay)
        if self._rate is not None:
            await asyncio.sleep(size / self._rate)
        await self._gates[direction].wait()

    async def passage_both(self) -> None:
        """Wait until neither direction is held."""
        for gate in self._gates.values():
            await gate.wait()

    @property
    def chunk(self) -> int:
        """How many bytes are forwarded at a time."""
        if self._rate is None:
            return _CHUNK
        return max(1, min(_CHUNK, int(self._rate / 20)))

    def grant(self, direction: Direction, size: int) -> tuple[int, bool]:
        """How many of ``size`` bytes to forward, and whether the connection is cut after them."""
        if direction == "to_server" or self._cut is None:
            self.sent[direction] += size
            return size, False
        granted = min(size, self._cut)
        self.sent[direction] += granted
        self._cut -= granted
        if self._cut:
            return granted, False
        self._cut = None
        return granted, True


class _Link:
    """One client's connection and the one to the server that belongs to it.

    Only its task touches the sockets; others order an ending.
    """

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = _prepared(socket.socket())
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    def end(self, ending: Ending) -> None:
        if not self._ending.done():
            self._ending.set_result(ending)

    def close_sockets(self) -> None:
        self._client.close()
        self._server.close()

    async def run(self, upstream: tuple[str, int]) -> None:
        """Forward until both sides have ended, or an ending is ordered."""
        forward = asyncio.create_task(self._forward(upstream))
        try:
            ending = await self._ending
        finally:
            forward.cancel()
            await asyncio.gather(forward, return_exceptions=True)
        if ending == "reset":
            self._reset()
        if ending == "fin":
            await self._finish()

    async def _forward(self, upstream: tuple[str, int]) -> None:
        try:
            await self._proxy.passage_both()
            await asyncio.get_running_loop().sock_connect(self._server, upstream)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump("to_server", self._client, self._server))
                pumps.create_task(self._pump("to_client", self._server, self._client))
        except* OSError:
            await self._proxy.passage_both()
            self.end("reset")
        self.end("over")

    async def _pump(
        self, direction: Direction, source: socket.socket, target: socket.socket
    ) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, self._proxy.chunk):
            await self._proxy.passage(direction, len(data))
            size, cut = self._proxy.grant(direction, len(data))
            await loop.sock_sendall(target, data[:size])
            if cut:
                self.end("fin")
                return
        await self._proxy.passage(direction, 0)
        _send_fin(target)

    def _reset(self) -> None:
        for side in (self._client, self._server):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _finish(self) -> None:
        # Closing a socket with unread bytes sends RST: read on until the other side ends.
        for side in (self._client, self._server):
            _send_fin(side)
        await asyncio.gather(_discard(self._client), _discard(self._server))


def _prepared(connection: socket.socket) -> socket.socket:
    connection.settimeout(0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _send_fin(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


async def _discard(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(connection, _CHUNK):
            pass
