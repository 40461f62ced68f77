"""What surrounds every request: its id, metrics and log, the last resort for errors, the farewell while draining."""

import asyncio
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from beholder.errors import EngineUnavailable, Overloaded
from beholder.lifecycle import Lifecycle
from beholder.metrics import Metrics
from beholder.problems import CODE_KEY, ID_KEY, error_problem, internal_problem
from beholder.request_log import log_request

LOG_KEY: Final = "beholder.log"
"""Where the scope keeps what routes add to the request's line of the log."""
FINGERPRINT_KEY: Final = "beholder.fingerprint"
"""Where the scope keeps the fingerprint of the model that answers; the first model's is shown without it."""
FINGERPRINT_HEADER: Final = b"beholder-fingerprint"
ID_HEADER: Final = b"x-request-id"
CLOSE: Final = (b"connection", b"close")
FAILURES: Final = (("500", "internal"), ("504", "deadline-exceeded"))
"""Status and code of what fails here; counted from a route's first request on, as 0: a rate is blind to the value that
a counter begins with, and a hung engine may fail all that a trainer sent at once, and no more."""
_ID: Final = re.compile(rb"[\w.:-]{1,128}")
_RANDOM: Final = random.Random()
"""Ids are no secret, and the kernel's numbers take longer."""


class Surroundings:
    """Plain ASGI: Starlette's function middleware would copy bodies through a queue."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        lifecycle: Lifecycle,
        fingerprint: str,
        max_body_bytes: int,
        *,
        log_requests: bool,
    ) -> None:
        self._app = app
        self._bodies = _Bodies(max_body_bytes)
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._fingerprint = fingerprint
        self._log_requests = log_requests
        self._counted: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0
        scope[LOG_KEY] = {}
        request_id = scope[ID_KEY] = _request_id(scope)

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                fingerprint = scope.get(FINGERPRINT_KEY, self._fingerprint)
                headers = [
                    *message.get("headers", ()),
                    (ID_HEADER, request_id.encode()),
                    (FINGERPRINT_HEADER, fingerprint.encode()),
                ]
                if self._lifecycle.draining and CLOSE not in headers:
                    headers.append(CLOSE)  # the client's next request then goes to a replica that stays
                message = {**message, "headers": headers}
            await send(message)

        try:
            with self._bodies.counting(receive) as counted_receive:
                await self._app(scope, counted_receive, watched_send)
        except Exception as error:
            if status:
                raise
            await internal_problem(error, scope)(scope, receive, watched_send)
        except asyncio.CancelledError:
            # uvicorn cancels what is not answered within drain_timeout_s, and would say 500 of it.
            if status or not self._lifecycle.draining:
                raise
            stopped = EngineUnavailable("the service stopped before the request was answered: retry")
            await error_problem(stopped, stopped.status, scope)(scope, receive, watched_send)
        finally:
            self._observe(scope, status, time.perf_counter() - started)

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        route, code = _route_path(scope), scope.get(CODE_KEY, "")
        if route not in self._counted:
            self._counted.add(route)
            for failure in FAILURES:
                self._metrics.requests.labels(route, *failure)
        self._metrics.requests.labels(route, str(status), code).inc()
        self._metrics.latency.labels(route).observe(seconds)
        if not self._log_requests:
            return
        log_request(
            route,
            method=scope["method"],
            status=status,
            code=code,
            seconds=round(seconds, 4),
            request_id=scope[ID_KEY],
            **scope[LOG_KEY],
        )


class _Bodies:
    """Bytes of the bodies of all requests that are being answered."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @contextmanager
    def counting(self, receive: Receive) -> Iterator[Receive]:
        """`receive` for one request, whose bytes count until the end of the block; it raises Overloaded."""
        own = 0

        async def counted() -> Message:
            nonlocal own
            message = await receive()
            size = len(message.get("body", b""))
            own += size
            self._held += size
            if self._held > self._limit:
                raise Overloaded(f"the bodies in flight have more than {self._limit} bytes: retry")
            return message

        try:
            yield counted
        finally:
            self._held -= own


def _request_id(scope: Scope) -> str:
    """The client's own, where it is harmless in a log, or a new one."""
    for name, value in scope["headers"]:
        if name == ID_HEADER and _ID.fullmatch(value):
            sent: str = value.decode()
            return sent
    return f"{_RANDOM.getrandbits(128):032x}"


def _route_path(scope: Scope) -> str:
    """The route's pattern: a label with a client's own path would grow without bound."""
    route: Any = scope.get("route")
    return getattr(route, "path", "unmatched")
