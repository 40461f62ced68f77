"""A full service refuses at the door; places are held while requests are read, but not by slow senders."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest

from beholder import in_flight
from beholder.checkpoint import Checkpoint
from beholder.metrics import Metrics
from beholder.prompts import PromptRenderer
from beholder.settings import Settings
from tests.service.serving import served
from tests.service.stand_in import Serve, StandInEngine, until
from tests.service.test_http import assert_problem

pytestmark = pytest.mark.anyio


async def held(client: httpx.AsyncClient, places: int) -> None:
    """Returns once so many places are held."""
    while f"beholder_samples_in_flight {places}.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110 (what a metric shows has no event)
        await asyncio.sleep(0.01)


async def slowly(body: bytes, sent: asyncio.Event) -> AsyncIterator[bytes]:
    yield body[:5]
    await sent.wait()
    yield body[5:]


async def test_more_than_may_be_in_flight_is_refused(serve: Serve, engine: StandInEngine) -> None:
    async with serve(max_in_flight=3) as client:
        engine.gate.clear()
        first = asyncio.ensure_future(client.post("/rank", json={"prompt": "p", "responses": ["a", "b"]}))
        await until(lambda: engine.active == 2)
        assert_problem(await client.post("/rank", json={"prompt": "p", "responses": ["a", "b"]}), 503, "overloaded")
        engine.gate.set()
        assert (await first).status_code == 200
        assert (await client.post("/rank", json={"prompt": "p", "responses": ["a", "b"]})).status_code == 200
        too_many = {"prompt": "p", "responses": ["a"] * 4}
        assert "split it" in assert_problem(await client.post("/rank", json=too_many), 422, "invalid-request")["detail"]


async def test_a_full_service_refuses_before_it_reads_the_body(serve: Serve, engine: StandInEngine) -> None:
    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(b"{")
        yield read[0]

    async with serve(max_in_flight=2) as client:
        engine.gate.clear()
        first = asyncio.ensure_future(client.post("/rank", json={"prompt": "p", "responses": ["a", "b"]}))
        await until(lambda: engine.active == 2)
        for path in ("/score", "/rank", "/classify", "/trainers/slime"):
            assert_problem(await client.post(path, content=body()), 503, "overloaded")
        assert not read
        engine.gate.set()
        assert (await first).status_code == 200
        assert_problem(await client.post("/score", content=body()), 422, "invalid-request")
        assert read


async def test_requests_hold_a_place_while_they_are_read(serve: Serve) -> None:
    """So that of many that come at once those beyond the places are refused before the work of reading them."""
    sent, body = asyncio.Event(), json.dumps({"prompt": "p", "response": "r"}).encode()
    async with serve(max_in_flight=2) as client:
        reading = [asyncio.ensure_future(client.post("/score", content=slowly(body, sent))) for _ in range(2)]
        await held(client, 2)
        assert_problem(await client.post("/score", content=body), 503, "overloaded")
        assert (await client.get("/models")).status_code == 200
        sent.set()
        assert [answer.status_code for answer in await asyncio.gather(*reading)] == [200, 200]
        assert_problem(await client.post("/score", content=b"{"), 422, "invalid-request")
        assert "beholder_samples_in_flight 0.0" in (await client.get("/metrics")).text


async def test_slow_senders_hold_no_place(serve: Serve, engine: StandInEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "READING_S", 0.2)
    sent, body = asyncio.Event(), json.dumps({"prompt": "p", "response": "r"}).encode()
    async with serve(max_in_flight=2) as client:
        slow = [asyncio.ensure_future(client.post("/score", content=slowly(body, sent))) for _ in range(2)]
        await held(client, 2)
        await held(client, 0)
        engine.gate.clear()
        before = engine.started
        quick = [asyncio.ensure_future(client.post("/score", content=body)) for _ in range(2)]
        await until(lambda: engine.started == before + 2)
        await asyncio.sleep(0.3)
        assert "beholder_samples_in_flight 2.0" in (await client.get("/metrics")).text, "accepted ones keep theirs"
        engine.gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*quick)] == [200, 200]
        sent.set()
        assert [answer.status_code for answer in await asyncio.gather(*slow)] == [200, 200]
        assert "beholder_samples_in_flight 0.0" in (await client.get("/metrics")).text


async def test_who_is_slow_to_take_the_answer_holds_no_place() -> None:
    bound = in_flight.InFlight(2, Metrics())
    with bound.arrive() as places:
        with bound.accept(places, 2):
            assert not bound.idle
        assert bound.idle


async def test_a_path_that_the_router_takes_is_shed_too(client: httpx.AsyncClient) -> None:
    assert (await client.post("/score%0A", json={"prompt": "p", "response": "r"})).status_code == 200


async def test_what_is_refused_at_the_door_is_counted_under_its_route(
    serve: Serve, engine: StandInEngine, checkpoint: Checkpoint
) -> None:
    async with serve(max_in_flight=1, shed_status=429) as client:
        engine.gate.clear()
        first = asyncio.ensure_future(client.post("/score", json={"prompt": "p", "response": "r"}))
        await until(lambda: engine.active == 1)
        shed = await client.post("/trainers/slime", content=b"{", headers={"X-Request-ID": "mine"})
        assert assert_problem(shed, 429, "overloaded")["request_id"] == shed.headers["X-Request-ID"] == "mine"
        assert shed.headers["Retry-After"] == "1"
        assert shed.headers["Beholder-Fingerprint"] == checkpoint.fingerprint
        engine.gate.set()
        assert (await first).status_code == 200
        counted = 'beholder_requests_total{code="overloaded",route="/trainers/slime",status="429"} 1.0'
        assert counted in (await client.get("/metrics")).text


def test_who_does_not_read_the_answers_holds_no_place(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    full = settings.model_copy(update={"max_in_flight": 64, "score_cache_bytes": 0})
    body = json.dumps({"query": "q", "documents": ["x" * 3000] * 64, "return_documents": True}).encode()
    request = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with served(full, engine, checkpoint, renderer) as url, socket.socket() as reader:
        before = engine.started
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        reader.settimeout(2)
        with suppress(TimeoutError):  # until all buffers on the way are full
            for _ in range(200):
                reader.sendall(request)
        assert engine.started > before
        assert httpx.post(f"{url}/score", json={"prompt": "p", "response": "r"}).status_code == 200
        assert "beholder_samples_in_flight 0.0" in httpx.get(f"{url}/metrics").text
