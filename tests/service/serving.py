"""The application behind a real socket, on a thread of the test's own process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGINT

import httpx

from beholder.app import create_app
from beholder.checkpoint import Checkpoint
from beholder.engine import Engine
from beholder.models import Model
from beholder.prompts import PromptRenderer
from beholder.server import bind, make_server
from beholder.settings import Settings


@contextmanager
def served(settings: Settings, engine: Engine, checkpoint: Checkpoint, renderer: PromptRenderer) -> Iterator[str]:
    """Its base URL, once it is ready."""
    server = make_server(create_app(settings, [Model(settings, engine, checkpoint, renderer)]), settings)
    listener = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while httpx.get(f"{url}/readyz").status_code != 200:
            pass
        yield url
    finally:
        server.handle_exit(SIGINT, None)
        thread.join(10)
