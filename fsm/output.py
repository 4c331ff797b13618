"""Writes to a file descriptor without holding the event loop up while its reader is slow.

A pipe that is full would otherwise block the whole program, and with it the replies that the
server waits for. The descriptor is not made non-blocking, since that would act on every process
that shares it.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

CHUNK: Final = 4096
"""Bytes written at a time: what a pipe that is ready takes without blocking (PIPE_BUF on Linux;
macOS takes no less once it says that it is ready)."""


async def write_out(fd: int, data: bytes) -> None:
    """Write all of ``data``, waiting for the reader where there is one.

    Raises:
        BrokenPipeError: nobody reads any more.
    """
    rest = memoryview(data)
    while rest:
        await _writable(fd)
        rest = rest[os.write(fd, rest[:CHUNK]) :]


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_writer(fd, _wake, waiter)
    except PermissionError:  # a regular file is always ready, and epoll does not take it
        return
    try:
        await waiter
    finally:
        loop.remove_writer(fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
