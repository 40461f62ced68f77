"""The HTTP connection: headers that are too large or come too slowly end it.

uvicorn bounds neither with httptools, so a client could fill memory with one endless header, or hold connections open
by sending a byte a minute. Bodies are bounded where they are read (routes/reading.py).
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SEPARATORS: Final = len(": \r\n")


class HeadersTooLarge(Exception):
    """Stops httptools' parser."""


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's protocol with limits; `limited` sets them."""

    max_header_bytes = 32 * 1024
    header_timeout_s = 10.0

    _timer: asyncio.TimerHandle | None = None
    _pending = True
    _received = 0
    _refusal: HTTPStatus | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._pending and not self.transport.is_closing():
            self._received += len(data)
            if self._received > self.max_header_bytes:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._pending, self._received = True, 0
        if self._timer is None:
            self._wait()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._pending = False
        size = len(self.url) + sum(len(name) + len(value) + SEPARATORS for name, value in self.headers)
        if size > self.max_header_bytes:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise HeadersTooLarge
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for everything that its parser refuses."""
        self._refuse(self._refusal or HTTPStatus.BAD_REQUEST)

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self.header_timeout_s, self._time_out)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        if self._received:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        code = status.phrase.lower().replace(" ", "-")
        detail = {
            HTTPStatus.REQUEST_TIMEOUT: f"the headers were not sent within {self.header_timeout_s:g} s",
            HTTPStatus.BAD_REQUEST: "this is not an HTTP request",
        }.get(status, f"URL and headers have more than {self.max_header_bytes} bytes")
        problem: dict[str, Any] = {"type": "about:blank", "title": status.phrase, "status": int(status)}
        body = json.dumps({**problem, "code": code, "detail": detail}).encode()
        head = (
            f"HTTP/1.1 {int(status)} {status.phrase}\r\nContent-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def limited(max_header_bytes: int, header_timeout_s: float) -> type[LimitedConnection]:
    """The protocol with these limits, as uvicorn takes it."""
    limits = {"max_header_bytes": max_header_bytes, "header_timeout_s": header_timeout_s}
    return type("LimitedConnection", (LimitedConnection,), limits)
