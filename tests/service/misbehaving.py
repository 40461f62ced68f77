"""An HTTP proxy that does to answers what networks do: each request meets the fault that the test chose for it."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal, Self
from urllib.parse import urlsplit

Fault = Literal["none", "delay", "drip", "reset", "truncate", "503", "500", "html-502"]
DELAY_S = 0.05


class Misbehaving:
    """Forwards to `upstream`; `choose` gives the fault of each request, in the order of their arrival."""

    def __init__(self, upstream: str, choose: Callable[[int], Fault] = lambda number: "none") -> None:
        address = urlsplit(upstream)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        self.choose = choose
        self.faults: Counter[Fault] = Counter()
        self.puts = 0
        self.posts = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    def kill(self) -> None:
        """As a process that dies: nobody listens any more, and open connections are reset."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection goes on."""
        request = await _message(reader)
        fault = self.choose(sum(self.faults.values()))
        self.faults[fault] += 1
        self.puts += request.startswith(b"PUT")
        self.posts += request.startswith(b"POST")
        if fault in ("503", "500", "html-502"):
            writer.write(_refusal(fault))
            await writer.drain()
            return True
        answer = await self._forward(request)
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "truncate":
            writer.write(answer[: -len(answer) // 4])
            await writer.drain()
            return False
        if fault == "delay":
            await asyncio.sleep(DELAY_S)
        if fault == "drip":
            for byte in answer:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(DELAY_S)
            return True
        writer.write(answer)
        await writer.drain()
        return True

    async def _forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            await writer.drain()
            return await _message(reader)
        finally:
            writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = [int(line[15:]) for line in head.splitlines() if line.lower().startswith(b"content-length:")]
    return head + await reader.readexactly(length)


def _refusal(fault: Fault) -> bytes:
    if fault == "html-502":
        return _response("502 Bad Gateway", "text/html", b"<html>bad gateway")
    code, status = ("overloaded", "503 Service Unavailable") if fault == "503" else ("internal", "500 Server Error")
    body = json.dumps({"code": code, "detail": fault}).encode()
    return _response(status, "application/problem+json", body, "Retry-After: 0\r\n")


def _response(status: str, kind: str, body: bytes, more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def misbehaving(upstream: str, choose: Callable[[int], Fault]) -> AsyncIterator[Misbehaving]:
    proxy = await Misbehaving(upstream, choose).start()
    try:
        yield proxy
    finally:
        proxy.kill()
