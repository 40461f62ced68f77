"""The HTTP connection: headers that are too large or come too slowly end it, and so does what trickles in after an
answer, and an answer that is not taken. Few requests wait behind the one that is answered, no upgrade is made, and no
connection is kept for ever.

uvicorn bounds none of it with httptools, so a client could fill memory with one endless header (or with trailers, the
headers behind a chunked body), or hold connections open by sending a byte a minute. Bodies are bounded where they are
read (routes/reading.py); the rest of one that was answered unread is thrown away, so that its sender can finish and
read the answer, for as long as a body may take. As long may a client take for what is being written to it before it
takes more: one that is gone without a word would keep its connection and its answer for a quarter of an hour.

What is read at once is parsed slice by slice, and kept unparsed while enough requests wait: a quarter of a megabyte
has more than ten thousand of them.

Behind one address a balancer chooses a replica for each connection, not for each request: a client that kept its
connections would never reach a replica that was added. So the first answer after about a minute says
`Connection: close`, unless its client has sent more without waiting for it, which would be lost.
"""

import asyncio
import json
import random
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

SEPARATORS: Final = len(": \r\n")
MAX_PIPELINED: Final = 16
"""Requests that wait behind the one that is answered, before nothing more is parsed."""
SLICE_BYTES: Final = 4096
"""Parsed at a time: of the smallest requests 200."""


class HeadersTooLarge(Exception):
    """Stops httptools' parser."""


class _Flow(FlowControl):
    """uvicorn reads on where a request waits for its body; here not before all that was read is parsed."""

    unparsed = memoryview(b"")

    def resume_reading(self) -> None:
        if not self.unparsed:
            super().resume_reading()


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's protocol with limits; `limited` sets them."""

    flow: _Flow

    max_header_bytes = 32 * 1024
    header_timeout_s = 10.0
    body_timeout_s = 60.0
    max_age_s = 60.0
    """Up to a quarter more or less, so that connections that were opened together do not end together."""

    _timer: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None
    """While more waits to be taken than the connection's buffers hold."""
    _pending = True
    """Until the headers of the message are complete."""
    _complete = False
    """Whether the message has ended: what comes now is the next one's."""
    _received = 0
    """Bytes since the message began, or since its body's last: of headers, trailers, blank lines between messages."""
    _moved = False
    """Whether the data that is being parsed had a body's bytes or a message's end."""
    _refusal: HTTPStatus | None = None
    _running: RequestResponseCycle | None = None
    """The request that is being answered, or was last; `cycle` is the one that was read last."""
    _pipelines = False
    """Whether the client has ever sent more before it was answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._old_at = self.loop.time() + self.max_age_s * random.uniform(0.75, 1.25)
        self._wait(self.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._writing is not None:
            self._writing.cancel()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self.body_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def data_received(self, data: bytes) -> None:
        self._parse(memoryview(data))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._pending, self._complete, self._received = True, False, 0
        if not self._all_answered():
            self._pipelines = True
        elif self._timer is None:
            self._wait(self.header_timeout_s)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._pending:  # no trailers: the application has the list already and nobody reads them
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._pending = False
        size = len(self.url) + sum(len(name) + len(value) + SEPARATORS for name, value in self.headers)
        if size > self.max_header_bytes:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise HeadersTooLarge
        if not self._asks_for_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._asks_for_upgrade():
            return
        self._moved = self._complete = True
        self._stop_waiting()
        super().on_message_complete()
        if self._all_answered():  # before its body was here, and that has stopped uvicorn's own timer
            self._wait(self.timeout_keep_alive)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._timer is None and self._all_answered():
            if self._pending:
                self._wait(self.header_timeout_s)
            elif not self._complete:
                self._wait(self.body_timeout_s)
        if self.flow.unparsed:
            self.loop.call_soon(self._parse_on)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app if self.loop.time() < self._old_at else self._last(cycle, app))

    def _last(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> "ASGI3Application":
        """`app`, with whose answer the connection ends if it was all that the client sent."""

        async def answer(scope: "Scope", receive: "ASGIReceiveCallable", send: "ASGISendCallable") -> None:
            async def send_last(message: "ASGISendEvent") -> None:
                if message["type"] == "http.response.start" and self._complete and not self._pipelines:
                    cycle.keep_alive = False  # uvicorn then says so in the answer's headers
                await send(message)

            await app(scope, receive, send_last)

        return answer

    def _all_answered(self) -> bool:
        latest: RequestResponseCycle | None = self.cycle
        return latest is None or latest.response_complete

    def _parse(self, data: memoryview) -> None:
        for start in range(0, len(data), SLICE_BYTES):
            if len(self.pipeline) >= MAX_PIPELINED:
                self.flow.unparsed = data[start:]
                self.flow.pause_reading()
                return
            self._parse_slice(data[start : start + SLICE_BYTES])
            if self.transport.is_closing():
                return

    def _parse_on(self) -> None:
        data, self.flow.unparsed = self.flow.unparsed, memoryview(b"")
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self._parse(data)

    def _parse_slice(self, data: memoryview) -> None:
        self._moved = False
        self._feed(data)
        if self.transport.is_closing():
            return
        # Where in `data` a body ended is not known, so what follows it there is not counted.
        self._received = 0 if self._moved else self._received + len(data)
        if self._received > self.max_header_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._complete and self.cycle.response_complete and not self._moved and self._timer is None:
            self._wait(self.header_timeout_s)  # blank lines, and uvicorn's own timer has just been stopped

    def _feed(self, data: memoryview | bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._asks_for_upgrade():  # CONNECT is another reason to stop
                self._feed_without_upgrade(bytes(data[upgrade.args[0] :]))
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self._refuse(self._refusal or HTTPStatus.BAD_REQUEST)

    def _asks_for_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade()) and any(name == b"upgrade" for name, _ in self.headers)

    def _feed_without_upgrade(self, rest: bytes) -> None:
        """Read the request again, as if it asked for no other protocol (RFC 9110, 7.8): the parser took what follows
        its headers for that protocol's."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._feed(b"\r\n".join([*lines, b"", rest]))

    def _wait(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._time_out)

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
        if self._awaits_answer():
            self._write_refusal(status)
        self.transport.close()

    def _awaits_answer(self) -> bool:
        """Whether an answer that is written now would be taken for this message's: not before an earlier one's, nor
        after its own."""
        latest: RequestResponseCycle | None = self.cycle
        if latest is None:
            return True
        if self._pending:
            return latest.response_complete
        return not latest.response_started and not self.pipeline

    def _write_refusal(self, status: HTTPStatus) -> None:
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


def limited(max_header_bytes: int, header_timeout_s: float, body_timeout_s: float) -> type[LimitedConnection]:
    """The protocol with these limits, as uvicorn takes it."""
    limits = {
        "max_header_bytes": max_header_bytes,
        "header_timeout_s": header_timeout_s,
        "body_timeout_s": body_timeout_s,
    }
    return type("LimitedConnection", (LimitedConnection,), limits)
