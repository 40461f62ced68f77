"""A network whose packets vanish: how long a client takes to notice. Run in a network namespace: it takes lo down."""

import asyncio
import json
import subprocess
import time
from contextlib import suppress

from beholder.client import AsyncRewardClient, keepalive
from beholder.errors import EngineUnavailable

SLOW_S = 3
"""Longer than it takes to notice."""
OPTIONS = {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 1, "TCP_USER_TIMEOUT": 1500}
ANSWER = {"scores": [1.0], "fingerprint": "f", "usage": {"prompt_tokens": 1, "cached_tokens": 0}}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float = 0) -> None:
    """Answer one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = [int(line[15:]) for line in head.lower().splitlines() if line.startswith(b"content-length:")]
    await reader.readexactly(length)
    await asyncio.sleep(delay_s)
    body = json.dumps(ANSWER).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


async def main() -> dict[str, float]:
    """Seconds until a slow answer came, until a connection that owes one was given up, and one that is sent to."""
    keepalive.KEEP_ALIVE.update(OPTIONS)
    delay_s = 0.0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            await serve(reader, writer, delay_s)

    await link("up")
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    took = {}
    async with AsyncRewardClient(url, deadline_s=60, retries=0) as client:
        delay_s = SLOW_S
        took["slow"] = await timed(client)

        delay_s = 100
        owing = asyncio.ensure_future(timed(client))
        await asyncio.sleep(0.5)
        await link("down")
        took["owing"] = await owing

        await link("up")
        delay_s = 0
        await timed(client)
        await link("down")
        took["sending"] = await timed(client)
    return took


async def timed(client: AsyncRewardClient) -> float:
    started = time.monotonic()
    with suppress(EngineUnavailable):
        await client.score("p", [], "r")
    return time.monotonic() - started


async def link(state: str) -> None:
    await asyncio.to_thread(subprocess.run, ["ip", "link", "set", "lo", state], check=True)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
