"""Each trainer's way to send a key: in the URL, by the HTTP library that it uses, to a service that is locked."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from beholder.app import create_app
from beholder.checkpoint import Checkpoint
from beholder.models import Model
from beholder.prompts import PromptRenderer
from beholder.server import bind, make_server
from beholder.settings import Settings
from tests.service.recorded import CHAT, LLAMA_FACTORY, OPENRLHF, RESPONSES, SLIME, VERL
from tests.service.stand_in import StandInEngine
from tests.service.test_server import Served

KEY = "s3cret"


@pytest.fixture
def served(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> Iterator[Served]:
    locked = settings.model_copy(update={"api_keys": (SecretStr(KEY),)})
    served = Served(
        make_server(create_app(locked, [Model(locked, engine, checkpoint, renderer)]), locked), bind("127.0.0.1", 0)
    )
    yield served
    served.stop()


def by_requests(url: str, body: dict[str, Any]) -> Any:
    """OpenRLHF and LLaMA-Factory: requests.post(url, json=..), no way to set a header."""
    requests = pytest.importorskip("requests")
    with requests.Session() as session:
        response = session.post(url, json=body, headers={"Content-Type": "application/json"}, timeout=10)
        return json.loads(response.text)


def by_aiohttp(url: str, body: dict[str, Any]) -> Any:
    """slime and verl: an aiohttp session's post of a URL that holds the host as it was set."""
    aiohttp = pytest.importorskip("aiohttp")

    async def post() -> Any:
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
            return await response.json(content_type=None)

    return asyncio.run(post())


CLIENTS: list[tuple[str, Callable[[str, dict[str, Any]], Any], dict[str, Any], Callable[[Any], float]]] = [
    ("/trainers/openrlhf", by_requests, OPENRLHF, lambda answer: answer["rewards"][0]),
    ("/trainers/llama-factory", by_requests, LLAMA_FACTORY, lambda answer: answer["scores"][0]),
    ("/trainers/slime", by_aiohttp, SLIME, lambda answer: answer),
    ("/classify", by_aiohttp, {**VERL, "model": None}, lambda answer: answer["data"][-1]["probs"][-1]),
]


@pytest.mark.parametrize(("path", "post", "body", "read"), CLIENTS)
def test_each_trainer_sends_its_key_in_the_url(
    served: Served, path: str, post: Callable[..., Any], body: dict[str, Any], read: Callable[[Any], float]
) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    item = {"messages": CHAT, "response": RESPONSES[0]}
    (score,) = httpx.post(f"{served.url}/score", json=item, headers=headers).json()["scores"]
    assert read(post(f"http://x:{KEY}@127.0.0.1:{served.port}{path}", body)) == score
    refusal = post(f"http://x:wrong@127.0.0.1:{served.port}{path}", body)
    assert refusal["code"] == "unauthorized"
    with pytest.raises((KeyError, TypeError)):
        float(read(refusal))
