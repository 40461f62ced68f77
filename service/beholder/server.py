"""Run the application: bind first, then load; drain on SIGTERM; exit non-zero when the engine dies.

On SIGTERM /readyz says 503 at once while requests are still accepted for `drain_delay_s`, since load balancers go on
sending until they have noticed; then the socket closes and what was accepted is finished.
"""

import asyncio
import logging
import math
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import prometheus_client
import uvicorn
from fastapi import FastAPI

from beholder.app import create_app
from beholder.connection import limited
from beholder.errors import ConfigurationError
from beholder.lifecycle import Lifecycle
from beholder.models import Model
from beholder.routes.context import Context
from beholder.settings import Settings

BACKLOG = 4096
KEEP_ALIVE_S = 75

_log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serve until a signal or the engine's death; the process's exit status."""
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    quiet_libraries(settings)
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    with bind(settings.host, settings.port) as listener:
        app = create_app(settings, [Model.open(each) for each in settings.each()])
        return run(app, settings, listener)


def quiet_libraries(settings: Settings) -> None:
    """Their warnings alone; httpx and its transport would log the URL of each image, which may be signed."""
    logging.getLogger("vllm").setLevel(logging.DEBUG if settings.log_level == "debug" else logging.WARNING)
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run(app: FastAPI, settings: Settings, listener: socket.socket) -> int:
    """Serve `app` on a bound socket; 0, or 1 when the service failed."""
    host, port = listener.getsockname()[:2]
    _log.info("listening on http://%s:%d", host, port)
    server = make_server(app, settings)
    server.run(sockets=[listener])
    return 1 if server.failed else 0


def make_server(app: FastAPI, settings: Settings) -> "DrainingServer":
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        http=limited(settings.max_header_bytes, settings.header_timeout_s, settings.body_timeout_s),
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
    )
    context: Context = app.state.context
    return DrainingServer(config, context.lifecycle, settings.drain_delay_s)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigurationError when the port is taken or the address is not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    return listener


class DrainingServer(uvicorn.Server):
    """uvicorn that waits out the drain delay and leaves when the service failed."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, drain_delay_s: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_delay_s = drain_delay_s
        self._close_at = math.inf

    @property
    def failed(self) -> bool:
        return self._lifecycle.failure is not None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await super().serve(sockets)
        # Its loop waits for the threads of its executor: those that still work do so for nobody, and may for minutes.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first SIGTERM drains; Ctrl-C closes at once; a second signal does not wait for requests either."""
        if self._lifecycle.draining:
            self.should_exit = self.force_exit = True
        delays = sig == signal.SIGTERM and self._lifecycle.accepting
        self._lifecycle.draining = True
        self._close_at = time.monotonic() + (self._drain_delay_s if delays else 0)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn asks ten times a second whether to close."""
        if self.failed or time.monotonic() >= self._close_at:
            self.should_exit = True
        return await super().on_tick(counter)
