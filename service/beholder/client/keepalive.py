"""Whether the other end of a connection is still there while it owes an answer: TCP is set to ask it.

A machine that lost its power, or a network that drops packets, ends no connection. An answer may take minutes, so a
limit on its time is no help; with these options the kernel tells what is gone from what is slow, within half a minute.
What takes no more of a body for as long counts as gone, too. Behind a proxy they tell of the proxy alone.
"""

import socket
from contextlib import suppress
from typing import Any, Final

KEEP_ALIVE: Final = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}
"""Seconds of silence before the first probe, seconds between probes, how many there are, and for how many milliseconds
what was sent may stay unacknowledged: no probe is sent meanwhile, and the kernel itself waits a quarter of an hour."""


async def keep_alive(event: str, info: dict[str, Any]) -> None:
    """The `trace` extension of a request of httpx, which is told of a connection that is made for it, to a proxy too.

    A transport with options for its sockets would not be: with one of its own httpx leaves the proxies of the
    environment out.
    """
    if not event.endswith(".connect_tcp.complete"):
        return
    connection = info["return_value"].get_extra_info("socket")
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        with suppress(AttributeError, OSError):  # not every platform has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
