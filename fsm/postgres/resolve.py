"""Names to addresses, without holding up the event loop or the end of the program."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


async def addresses(host: str) -> list[Any]:
    """Ask the system's resolver: what ``socket.getaddrinfo`` gives for stream sockets.

    The resolver cannot be interrupted, and ``loop.getaddrinfo`` would make ``asyncio.run`` wait for
    it after a stop. So it is asked in a thread that nothing waits for.

    Raises:
        OSError: ``socket.gaierror`` where the name cannot be resolved.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[Any]] = loop.create_future()

    def give(settle: Callable[[Any], None], outcome: Any) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(_settle, answer, settle, outcome)

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            give(answer.set_exception, error)
        else:
            give(answer.set_result, found)

    threading.Thread(target=ask, name="slotkeeper resolver", daemon=True).start()
    return await answer


def _settle(answer: asyncio.Future[list[Any]], settle: Callable[[Any], None], outcome: Any) -> None:
    if not answer.done():
        settle(outcome)
