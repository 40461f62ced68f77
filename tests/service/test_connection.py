"""Limits of the connection, over a real socket: large and slow headers, slow bodies, and what the log has of it all."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from beholder.app import create_app
from beholder.checkpoint import Checkpoint
from beholder.client import RewardClient
from beholder.connection import LimitedConnection
from beholder.models import Model
from beholder.prompts import PromptRenderer
from beholder.server import bind, make_server
from beholder.settings import Settings
from tests.pictures import png
from tests.service.stand_in import StandInEngine
from tests.service.test_server import SCORE, Served, wait_until

KEY = "s3cret-key"


@pytest.fixture
def served(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> Iterator[Served]:
    hurried = settings.model_copy(update={"header_timeout_s": 0.5, "body_timeout_s": 0.5, "max_header_bytes": 8192})
    served = Served(
        make_server(create_app(hurried, [Model(hurried, engine, checkpoint, renderer)]), hurried), bind("127.0.0.1", 0)
    )
    yield served
    served.stop()


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        yield connection


def answer(connection: socket.socket) -> bytes:
    """All until the service closes the connection."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def code_of(raw: bytes) -> tuple[int, str]:
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["code"]


def assert_still_serving(served: Served) -> None:
    assert httpx.post(f"{served.url}/score", json=SCORE).status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 10_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 2_000 + b"\r\n",
        b"GET /livez?" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Endless: " + b"a" * 10_000,
    ],
    ids=["one header", "many headers", "the URL", "a header without end"],
)
def test_large_headers_are_refused(served: Served, head: bytes) -> None:
    with connected(served) as connection:
        connection.sendall(head)
        assert code_of(answer(connection)) == (431, "request-header-fields-too-large")
    assert_still_serving(served)


def send_until_cut_off(connection: socket.socket) -> None:
    connection.sendall(b"GET /livez HTTP/1.1\r\nX-Endless: ")
    for _ in range(2_000):
        connection.sendall(b"a" * 1_000)
        time.sleep(0.001)


def test_a_header_without_end_is_cut_off(served: Served) -> None:
    with connected(served) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_until_cut_off(connection)
    assert_still_serving(served)


def test_slow_headers_are_given_up(served: Served) -> None:
    started = time.monotonic()
    with connected(served) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost:")
        assert code_of(answer(connection)) == (408, "request-timeout")
    assert time.monotonic() - started < 5
    assert_still_serving(served)


def test_a_silent_connection_is_closed(served: Served) -> None:
    with connected(served) as connection:
        assert answer(connection) == b""


def test_a_second_request_of_a_connection_is_limited_too(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 10_000)
        assert code_of(answer(connection)) == (431, "request-header-fields-too-large")


def test_a_slow_body_is_given_up_and_the_connection_with_it(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert code_of(answer(connection)) == (408, "request-timeout")
    assert_still_serving(served)


CHUNKED = b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
UNREAD = {
    "the rest of a body": b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n",
    "the body of a request that has none": b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n",
    "a trailer": b"GET /livez" + CHUNKED + b"1\r\n{\r\n0\r\nX-Trailer: ",
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_trickles_in_after_the_answer_is_given_up(served: Served, name: str) -> None:
    with connected(served) as connection:
        connection.sendall(UNREAD[name])
        assert connection.recv(65536).startswith(b"HTTP/1.1 ")
        assert closed_while_sending(connection, b"x")
    assert_still_serving(served)


def test_an_answer_that_is_not_taken_ends_the_connection(served: Served) -> None:
    body = json.dumps({"query": "q", "documents": ["x" * 3000] * 500, "return_documents": True}).encode()
    request = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", served.port))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(request * 100)
    assert_still_serving(served)


def test_an_answer_that_is_taken_slowly_comes_whole(served: Served) -> None:
    body = json.dumps({"query": "q", "documents": ["x" * 3000] * 500, "return_documents": True}).encode()
    with connected(served) as connection:
        connection.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
        connection.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
            time.sleep(0.05)
    assert len(json.loads(received.partition(b"\r\n\r\n")[2])["results"]) == 500


def test_blank_lines_keep_no_connection_open(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert closed_while_sending(connection, b"\r\n")
    assert_still_serving(served)


def closed_while_sending(connection: socket.socket, byte: bytes) -> bool:
    """Whether the service closes the connection within 3 s, with no further answer."""
    connection.settimeout(0.1)
    for _ in range(30):
        try:
            connection.sendall(byte)
            return connection.recv(65536) == b""
        except TimeoutError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            return True
    return False


def test_a_large_body_that_was_answered_unread_may_be_sent_to_its_end(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n")
        for _ in range(8):
            connection.sendall(b"x" * 1_000_000)
        assert code_of(connection.recv(65536)) == (404, "not-found")
        time.sleep(0.7)  # longer than a body may take: this one has ended
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_connection_is_idle_after_a_body_that_came_behind_its_answer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.server.config, "timeout_keep_alive", 0.5)
    with connected(served) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert code_of(connection.recv(65536)) == (404, "not-found")
        connection.sendall(b"x" * 10)
        assert connection.recv(65536) == b""


@pytest.mark.parametrize("trailer", [b"X-Trailer: y\r\n", b"x"], ids=["many trailers", "a trailer without end"])
@pytest.mark.parametrize("route", [b"GET /livez", b"POST /score"])
def test_trailers_are_limited(served: Served, route: bytes, trailer: bytes) -> None:
    with connected(served) as connection:
        connection.sendall(route + CHUNKED + b"1\r\n{\r\n0\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(trailer * (20_000_000 // len(trailer)))
    assert_still_serving(served)


def test_trailers_are_no_headers(served: Served) -> None:
    body = json.dumps(SCORE).encode()
    with connected(served) as connection:
        connection.sendall(b"POST /score" + CHUNKED)
        connection.sendall(b"%x\r\n%b\r\n0\r\nX-Request-ID: late\r\n\r\n" % (len(body), body))
        answered = connection.recv(65536)
    assert answered.startswith(b"HTTP/1.1 200")
    assert b"late" not in answered


def test_the_bytes_of_a_body_are_not_those_of_the_next_headers(served: Served) -> None:
    body = json.dumps({**SCORE, "prompt": "a" * 60_000}).encode()
    with connected(served) as connection:
        head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body + b"GET /livez HTTP/1.1\r\nHo")
        time.sleep(0.2)
        connection.sendall(b"st: x\r\nConnection: close\r\n\r\n")
        received = answer(connection)
    assert [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]] == [422, 200]


def test_no_refusal_is_taken_for_the_answer_to_an_earlier_request(served: Served, engine: StandInEngine) -> None:
    engine.gate.clear()
    body = json.dumps(SCORE).encode()
    with connected(served) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: engine.active == 1)
        connection.sendall(b"not HTTP\r\n\r\n")
        assert answer(connection) == b""
    engine.gate.set()


def request(body: bytes = json.dumps(SCORE).encode(), path: bytes = b"/score", headers: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n" % (path, headers, len(body))
    return head + body


def answers(connection: socket.socket, count: int) -> list[int]:
    """The statuses of so many answers."""
    received = b""
    while received.count(b"HTTP/1.1 ") < count and (chunk := connection.recv(65536)):
        received += chunk
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


LIVE = b"GET /livez HTTP/1.1\r\n\r\n"


def waiting(served: Served) -> int:
    """Requests behind those that are being answered."""
    connections = served.server.server_state.connections
    return sum(len(each.pipeline) for each in connections if isinstance(each, LimitedConnection))


def test_few_requests_wait_behind_one_and_all_are_answered(served: Served, engine: StandInEngine) -> None:
    engine.gate.clear()
    with connected(served) as connection:
        connection.sendall(request() + LIVE * 2_000)
        wait_until(lambda: engine.active == 1)
        assert 0 < waiting(served) < 250
        connection.sendall(LIVE * 1_000)
        time.sleep(0.1)
        assert waiting(served) < 250
        engine.gate.set()
        assert answers(connection, 3_001) == [200] * 3_001
        connection.sendall(request() * 100)
        assert answers(connection, 100) == [200] * 100


def test_a_head_that_begins_while_another_request_is_answered_has_its_time_afterwards(
    served: Served, engine: StandInEngine
) -> None:
    engine.gate.clear()
    with connected(served) as connection:
        connection.sendall(request() + b"GET /li")
        time.sleep(1)  # longer than a head may take
        engine.gate.set()
        assert answers(connection, 1) == [200]
        connection.sendall(b"vez HTTP/1.1\r\n\r\n")
        assert answers(connection, 1) == [200]
        connection.sendall(b"GET /li")
        assert code_of(answer(connection)) == (408, "request-timeout")


@pytest.mark.parametrize("behind", [LIVE, request() + LIVE], ids=["one behind it", "two"])
def test_what_is_scored_for_a_client_that_has_gone_ends_with_requests_behind_it_too(
    served: Served, engine: StandInEngine, behind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    engine.gate.clear()
    with connected(served) as connection:
        connection.sendall(request() + behind)
        wait_until(lambda: engine.active == 1)
    wait_until(lambda: engine.active == 0, 3)
    time.sleep(0.1)
    assert engine.active == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_another_protocol_is_not_taken_up(served: Served, protocol: bytes) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABk\r\n" % protocol
    with connected(served) as connection:
        connection.sendall(request(headers=upgrade) + LIVE)
        assert answers(connection, 2) == [200, 200]
        whole = request(json.dumps({**SCORE, "prompt": "a" * 60_000}).encode(), headers=upgrade)
        for start in range(0, len(whole), 10_000):
            connection.sendall(whole[start : start + 10_000])
            time.sleep(0.01)
        connection.sendall(b"GET /livez HTTP/1.1\r\n%b\r\n" % upgrade)
        assert answers(connection, 2) == [422, 200]
        connection.sendall(b"POST /score HTTP/1.1\r\n%bContent-Length: 10\r\n\r\n{" % upgrade)
        assert code_of(answer(connection)) == (408, "request-timeout")
    assert_still_serving(served)


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection is."""
    monkeypatch.setattr(LimitedConnection, "max_age_s", 0)


def test_a_connection_that_is_not_old_stays(served: Served) -> None:
    with connected(served) as connection:
        for _ in range(2):
            connection.sendall(LIVE)
            assert b"connection: close" not in connection.recv(65536)


@pytest.mark.usefixtures("old")
def test_an_old_connection_ends_with_an_answer_that_says_so(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(LIVE)
        received = answer(connection)
    assert received.startswith(b"HTTP/1.1 200")
    assert received.count(b"\r\nconnection: close\r\n") == 1


@pytest.mark.usefixtures("old")
def test_what_was_sent_ahead_is_answered_by_an_old_connection(served: Served, engine: StandInEngine) -> None:
    engine.gate.clear()
    with connected(served) as connection:
        connection.sendall(request() + b"GET /li")
        wait_until(lambda: engine.active == 1)
        engine.gate.set()
        assert answers(connection, 1) == [200]
        connection.sendall(b"vez HTTP/1.1\r\n\r\n" + LIVE * 2_000)
        assert answers(connection, 2_001) == [200] * 2_001


@pytest.mark.usefixtures("old")
def test_an_old_connection_stays_for_the_rest_of_a_body(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert code_of(connection.recv(65536)) == (404, "not-found")
        connection.sendall(b"x" * 10 + LIVE)
        assert answer(connection).startswith(b"HTTP/1.1 200")


def test_clients_do_not_notice_that_connections_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    connect = LimitedConnection.connection_made

    def counted(connection: LimitedConnection, transport: asyncio.Transport) -> None:
        opened.append(connection)
        connect(connection, transport)

    monkeypatch.setattr(LimitedConnection, "connection_made", counted)
    monkeypatch.setattr(LimitedConnection, "max_age_s", 0.05)
    with RewardClient(served.url, retries=0, max_concurrency=4) as client:
        scores = client.score_many([("p", [png()], f"{number}") for number in range(400)])
    assert len(scores) == 400
    assert len(opened) > 8


def test_what_is_not_http_is_refused(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100))
        assert code_of(answer(connection)) == (400, "bad-request")
    assert_still_serving(served)


def test_each_request_is_one_line_of_json_without_its_contents(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-ID": "my-id.1"}
    body = {"prompt": "a private prompt", "images": [png().hex()], "response": "a private response"}
    refused = httpx.post(f"{served.url}/score?key={KEY}", json=body, headers=headers)
    answered = httpx.post(f"{served.url}/score", json=SCORE, headers={b"X-Request-ID": b"bad id\xe9"})
    httpx.get(f"{served.url}/images/{KEY}")
    httpx.get(f"{served.url}/livez")
    text = capsys.readouterr().err
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["route"], line["status"], line["code"]) for line in lines] == [
        ("/score", 422, "invalid-image"),
        ("/score", 200, ""),
        ("/images/{sha256}", 405, "method-not-allowed"),
    ]
    assert lines[0]["request_id"] == refused.headers["x-request-id"] == refused.json()["request_id"] == "my-id.1"
    assert lines[1]["request_id"] == answered.headers["x-request-id"]
    assert len(answered.headers["x-request-id"]) == 32
    assert (lines[1]["samples"], lines[1]["images"], lines[1]["method"]) == (1, 0, "POST")
    assert lines[1]["prompt_tokens"] > 0
    assert KEY not in text
    assert "private" not in text
    assert png().hex()[:40] not in text
