"""Links to images through HTTP: off by default, scored as the image itself where hosts are allowed."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from beholder import app as wiring
from beholder.checkpoint import Checkpoint
from beholder.images.urls import UrlFetcher, UrlPolicy
from beholder.prompts import PromptRenderer
from beholder.settings import Settings
from tests.pictures import png
from tests.service.stand_in import StandInEngine, serving, until
from tests.service.test_http import assert_problem

pytestmark = pytest.mark.anyio
PICTURE = png()
URL = "https://images.example.com/a.png"


def fetcher(policy: UrlPolicy) -> UrlFetcher:
    """Finds the picture at every allowed host but those whose name begins with `private`."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["10.0.0.1"] if host.startswith("private") else ["93.184.215.14"]

    def answer(request: httpx.Request) -> httpx.Response:
        content = PICTURE if request.url.path == "/a.png" else b"<svg/>"
        return httpx.Response(200, stream=httpx.ByteStream(content))

    return UrlFetcher(policy, resolve, transport=httpx.MockTransport(answer))


@pytest.fixture
async def client(
    settings: Settings,
    engine: StandInEngine,
    checkpoint: Checkpoint,
    renderer: PromptRenderer,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch.setattr(wiring, "UrlFetcher", fetcher)
    limits = {"max_body_bytes": 3 * len(PICTURE), "max_body_bytes_in_flight": 4 * len(PICTURE)}
    allowed = settings.model_copy(update={"image_url_hosts": ("*.example.com",), **limits})
    async with serving(allowed, engine, checkpoint, renderer) as client:
        yield client


def body(*images: Any) -> dict[str, Any]:
    return {"prompt": "p", "images": list(images), "response": "r"}


async def test_a_link_scores_as_the_image(client: httpx.AsyncClient) -> None:
    linked = (await client.post("/score", json=body({"url": URL}))).json()
    inline = (await client.post("/score", json=body(base64.b64encode(PICTURE).decode()))).json()
    assert linked["scores"] == inline["scores"]


async def test_a_chat_may_have_links(client: httpx.AsyncClient) -> None:
    parts = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "p"}]
    rerank = {"query": {"content": parts}, "documents": ["r"], "use_activation": False}
    answer = (await client.post("/v2/rerank", json=rerank)).json()
    assert [answer["results"][0]["relevance_score"]] == (await client.post("/score", json=body({"url": URL}))).json()[
        "scores"
    ]


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("https://private.example.com/a.png", 422, "image-url-refused"),
        ("https://elsewhere.org/a.png", 422, "image-url-refused"),
        ("http://images.example.com/a.png", 422, "image-url-refused"),
        ("https://images.example.com/a.svg", 422, "invalid-image"),
    ],
)
async def test_refusals_name_the_place(client: httpx.AsyncClient, url: str, status: int, code: str) -> None:
    problem = assert_problem(await client.post("/score", json=body({"url": url})), status, code)
    assert problem["detail"].startswith("images[0]: ")


async def test_what_links_lead_to_is_bounded_for_all_requests_together(
    client: httpx.AsyncClient, engine: StandInEngine
) -> None:
    engine.gate.clear()
    first = asyncio.ensure_future(client.post("/score", json=body({"url": f"{URL}?1"}, {"url": f"{URL}?2"})))
    await until(lambda: engine.active)
    links = [{"url": f"{URL}?{number}"} for number in range(3)]
    try:
        response = await asyncio.wait_for(client.post("/score", json=body(*links)), 10)
    finally:
        engine.gate.set()
    assert "links" in assert_problem(response, 503, "overloaded")["detail"]
    assert "retry-after" in response.headers
    assert (await first).status_code == 200
    for _ in range(3):  # nothing stays counted, neither of what was scored nor of what was refused
        assert (await client.post("/score", json=body(*links))).status_code == 200


async def test_what_links_lead_to_is_bounded_for_a_request(client: httpx.AsyncClient) -> None:
    links = [{"url": f"{URL}?{number}"} for number in range(4)]
    assert (await client.post("/score", json=body(*links[:3]))).status_code == 200
    assert_problem(await client.post("/score", json=body(*links)), 413, "image-too-large")
