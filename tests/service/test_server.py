"""The socket, the drain and the exit, over a stand-in engine and a real uvicorn."""

import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from beholder.app import create_app
from beholder.checkpoint import Checkpoint
from beholder.cli import main
from beholder.errors import ConfigurationError
from beholder.models import Model
from beholder.prompts import PromptRenderer
from beholder.server import DrainingServer, bind, make_server, quiet_libraries
from beholder.settings import Settings
from tests.service.stand_in import StandInEngine

SCORE = {"prompt": "p", "response": "r"}
DRAIN_DELAY_S = 1.0


class Served:
    """A server in a thread. A signal is a call of `handle_exit`, as Python's signal module would make it."""

    def __init__(self, server: DrainingServer, listener: socket.socket) -> None:
        self.server = server
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=server.run, args=([listener],))
        self.thread.start()
        wait_until(lambda: httpx.get(f"{self.url}/readyz").status_code == 200)

    def stop(self) -> None:
        self.server.handle_exit(signal.SIGINT, None)
        self.thread.join(10)
        assert not self.thread.is_alive()


def wait_until(condition: object, timeout: float = 10) -> None:
    end = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def refuses(url: str) -> bool:
    """Whether nobody listens there any more."""
    try:
        httpx.get(f"{url}/livez")
    except httpx.ConnectError:
        return True
    return False


@pytest.fixture
def served(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> Iterator[Served]:
    slow_drain = settings.model_copy(update={"drain_delay_s": DRAIN_DELAY_S})
    server = make_server(create_app(slow_drain, [Model(slow_drain, engine, checkpoint, renderer)]), slow_drain)
    served = Served(server, bind("127.0.0.1", 0))
    yield served
    engine.gate.set()
    served.stop()


def test_sigterm_finishes_what_was_accepted_then_refuses(served: Served, engine: StandInEngine) -> None:
    engine.gate.clear()
    with ThreadPoolExecutor() as pool, httpx.Client(base_url=served.url) as client:
        accepted = [pool.submit(client.post, "/score", json=SCORE) for _ in range(5)]
        wait_until(lambda: engine.active == 5)
        began = time.monotonic()
        served.server.handle_exit(signal.SIGTERM, None)
        assert httpx.get(f"{served.url}/readyz").status_code == 503
        accepted.append(pool.submit(httpx.post, f"{served.url}/score", json=SCORE))  # within the drain delay
        wait_until(lambda: engine.active == 6)
        wait_until(lambda: refuses(served.url))
        assert time.monotonic() - began >= DRAIN_DELAY_S
        assert engine.active == 6  # not stopped, though nobody can connect
        engine.gate.set()
        assert [request.result().status_code for request in accepted] == [200] * 6
    served.thread.join(10)
    assert engine.stopped
    assert not served.server.failed


def test_what_is_not_answered_within_the_drain_is_told_to_ask_elsewhere(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    hurried = settings.model_copy(update={"drain_timeout_s": 1})
    app = create_app(hurried, [Model(hurried, engine, checkpoint, renderer)])
    served = Served(make_server(app, hurried), bind("127.0.0.1", 0))
    engine.gate.clear()
    with ThreadPoolExecutor() as pool:
        request = pool.submit(httpx.post, f"{served.url}/score", json=SCORE, timeout=10)
        wait_until(lambda: engine.active == 1)
        served.stop()
        answer = request.result()
    assert (answer.status_code, answer.json()["code"]) == (503, "engine-unavailable")
    assert answer.headers["retry-after"]
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_the_log_has_no_url_of_an_image(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    names = ("httpx", "httpcore", "vllm")
    levels = {name: logging.getLogger(name).level for name in names}
    quiet_libraries(settings)
    answering = httpx.MockTransport(lambda _: httpx.Response(200))
    try:
        with caplog.at_level(logging.INFO), httpx.Client(transport=answering) as web:
            web.get("https://images.example.com/a.png?X-Amz-Signature=SECRET")
    finally:
        for name in names:
            logging.getLogger(name).setLevel(levels[name])
    assert "SECRET" not in caplog.text


def test_a_request_whose_client_has_gone_is_not_scored(served: Served, engine: StandInEngine) -> None:
    engine.gate.clear()
    body = json.dumps({"prompt": "p", "responses": ["a", "b"]}).encode()
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"POST /rank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: engine.active == 2)
    wait_until(lambda: engine.active == 0)


def test_the_server_leaves_when_the_engine_died(served: Served, engine: StandInEngine) -> None:
    engine.die()
    served.thread.join(10)
    assert served.server.failed


def test_a_port_in_use_is_named() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            bind("127.0.0.1", port)


def test_the_address_of_ipv6_answers_ipv4_too() -> None:
    try:
        listener = bind("::", 0)
    except ConfigurationError:
        pytest.skip("this machine has no IPv6")
    with listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=5):
        pass


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on 192\.0\.2\.1:0: "):
        bind("192.0.2.1", 0)


def test_serve_says_in_one_line_that_the_port_is_in_use(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(tiny_checkpoint), "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert (
        error == f"beholder: error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port\n"
    )
