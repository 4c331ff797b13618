"""Waiting for a socket on the event loop."""

from __future__ import annotations

import selectors
from contextlib import suppress
from typing import TYPE_CHECKING

from fsm.errors import BadInput

if TYPE_CHECKING:
    import asyncio

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


def announce(fd: int, events: int, waiter: asyncio.Future[None]) -> None:
    """Have the event loop set ``waiter`` when the socket is ready for one of ``events``.

    Raises:
        BadInput: the event loop has no ``add_reader``.
    """
    loop = waiter.get_loop()
    try:
        if events & READ:
            loop.add_reader(fd, _wake, waiter)
        if events & WRITE:
            loop.add_writer(fd, _wake, waiter)
    except NotImplementedError:
        raise BadInput(
            "this event loop cannot watch sockets: use one that has add_reader, "
            "on Windows asyncio.SelectorEventLoop"
        ) from None


def forget(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """Stop watching the socket: before it is closed, or at once after."""
    for remove in (loop.remove_reader, loop.remove_writer):
        # With both registered, taking one off a closed socket is a change of the other, which the
        # system refuses; the selector then drops both.
        with suppress(OSError):
            remove(fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
