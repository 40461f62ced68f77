"""What surrounds every request: metrics, the last resort for errors, and the farewell while draining."""

import time
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from beholder.lifecycle import Lifecycle
from beholder.metrics import Metrics
from beholder.problems import CODE_KEY, internal_problem


class Surroundings:
    """Plain ASGI: Starlette's function middleware would copy bodies through a queue."""

    def __init__(self, app: ASGIApp, metrics: Metrics, lifecycle: Lifecycle) -> None:
        self._app = app
        self._metrics = metrics
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._lifecycle.draining:
                    # The client's next request then goes to a replica that stays.
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except Exception as error:
            if status:
                raise
            await internal_problem(error, scope)(scope, receive, watched_send)
        finally:
            self._observe(scope, status, time.perf_counter() - started)

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route_path(scope)
        self._metrics.requests.labels(route, str(status), scope.get(CODE_KEY, "")).inc()
        self._metrics.latency.labels(route).observe(seconds)


def _route_path(scope: Scope) -> str:
    """The route's pattern: a label with a client's own path would grow without bound."""
    route: Any = scope.get("route")
    return getattr(route, "path", "unmatched")
