"""The score cache: computed once, identical ever after, bounded, and never in the way of a check or a cancellation."""

import asyncio
import base64
import io
import re

import httpx
import pytest
from PIL import Image

from beholder.engine.caching import ENTRY_BYTES, CachingEngine
from beholder.errors import EngineError, InvalidRequest
from beholder.images import load_image
from beholder.metrics import Metrics
from beholder.prompts import Prompt, PromptRenderer, single_turn
from tests.service.stand_in import Serve, StandInEngine, until

pytestmark = pytest.mark.anyio


def picture(colour: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


def prompt_for(renderer: PromptRenderer, response: str, *colours: int) -> Prompt:
    images = [load_image(picture(colour)) for colour in colours]
    return renderer.render(single_turn("What is it?", len(images)), response, images)


@pytest.fixture
async def caching(engine: StandInEngine) -> CachingEngine:
    caching = CachingEngine(engine, 10 * ENTRY_BYTES, Metrics())
    await caching.start()
    return caching


async def test_a_score_is_computed_once_and_says_so(
    caching: CachingEngine, engine: StandInEngine, renderer: PromptRenderer
) -> None:
    prompt = prompt_for(renderer, "A pear.", 1)
    first, again = await caching.score(prompt), await caching.score(prompt)
    assert engine.started == 1
    assert again.logit == first.logit
    assert (first.from_cache, again.from_cache) == (False, True)
    assert again.cached_tokens == again.prompt_tokens == first.prompt_tokens


async def test_what_the_model_reads_is_the_key(
    caching: CachingEngine, engine: StandInEngine, renderer: PromptRenderer
) -> None:
    prompts = [
        prompt_for(renderer, "A pear.", 1),
        prompt_for(renderer, "A pear.", 2),
        prompt_for(renderer, "A fig.", 1),
        prompt_for(renderer, "A pear."),
        prompt_for(renderer, "A pear.", 1, 2),
        prompt_for(renderer, "A pear.", 2, 1),
    ]
    scores = [await caching.score(prompt) for prompt in prompts]
    assert engine.started == len(prompts)
    assert [score.logit for score in scores] == [engine.logit(prompt) for prompt in prompts]


async def test_identical_samples_in_flight_share_one_computation(
    caching: CachingEngine, engine: StandInEngine, renderer: PromptRenderer
) -> None:
    engine.gate.clear()
    requests = [asyncio.ensure_future(caching.score(prompt_for(renderer, "A pear.", 1))) for _ in range(5)]
    await until(lambda: engine.active == 1)
    engine.gate.set()
    scores = await asyncio.gather(*requests)
    assert engine.started == 1
    assert len({score.logit for score in scores}) == 1
    assert sum(score.from_cache for score in scores) == 4


async def test_one_that_leaves_takes_nothing_from_the_others(
    caching: CachingEngine, engine: StandInEngine, renderer: PromptRenderer
) -> None:
    engine.gate.clear()
    leaves, stays = (asyncio.ensure_future(caching.score(prompt_for(renderer, "A pear."))) for _ in range(2))
    await until(lambda: engine.active == 1)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    assert engine.active == 1
    engine.gate.set()
    assert (await stays).logit == engine.logit(prompt_for(renderer, "A pear."))


async def test_the_last_that_leaves_ends_the_computation(
    caching: CachingEngine, engine: StandInEngine, renderer: PromptRenderer
) -> None:
    engine.gate.clear()
    requests = [asyncio.ensure_future(caching.score(prompt_for(renderer, "A pear."))) for _ in range(2)]
    await until(lambda: engine.active == 1)
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    assert engine.active == 0
    engine.gate.set()
    assert not (await caching.score(prompt_for(renderer, "A pear."))).from_cache


async def test_an_error_reaches_all_and_is_not_kept(
    caching: CachingEngine, engine: StandInEngine, renderer: PromptRenderer
) -> None:
    engine.score_error = EngineError("broken")
    prompt = prompt_for(renderer, "A pear.")
    outcomes = await asyncio.gather(*(caching.score(prompt) for _ in range(3)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["broken"] * 3
    engine.score_error = None
    assert (await caching.score(prompt)).logit == engine.logit(prompt)


async def test_fresh_is_computed_anew(caching: CachingEngine, engine: StandInEngine, renderer: PromptRenderer) -> None:
    prompt = prompt_for(renderer, "A pear.")
    await caching.score(prompt)
    assert not (await caching.score(prompt, fresh=True)).from_cache
    assert (engine.started, engine.fresh) == (2, 1)


async def test_the_oldest_scores_give_way(
    caching: CachingEngine, engine: StandInEngine, renderer: PromptRenderer
) -> None:
    for number in range(11):
        await caching.score(prompt_for(renderer, f"number {number}"))
    assert not (await caching.score(prompt_for(renderer, "number 0"))).from_cache
    assert (await caching.score(prompt_for(renderer, "number 10"))).from_cache


async def test_over_http_a_retried_rollout_gets_the_identical_score(serve: Serve, engine: StandInEngine) -> None:
    body = {
        "prompt": "Which one?",
        "images": [base64.b64encode(picture(7)).decode()],
        "responses": ["a", "b", "a"],
    }
    async with serve(score_cache_bytes=2**20) as client:
        before = engine.started
        first, again = [(await client.post("/rank", json=body)).json() for _ in range(2)]
        assert engine.started - before == 2
        assert again["scores"] == first["scores"]
        assert (first["cached"], again["cached"]) == ([False, False, True], [True, True, True])
        assert again["usage"]["cached_tokens"] == again["usage"]["prompt_tokens"]
        assert await outcomes(client) == {"miss": 2, "joined": 1, "hit": 3}


async def test_over_http_samples_that_share_an_error_have_places_of_their_own(
    serve: Serve, engine: StandInEngine
) -> None:
    """The engine refuses two equal responses in one computation, and another client's joins it."""
    async with serve(score_cache_bytes=2**20) as client:
        engine.score_error = InvalidRequest("refused")
        engine.gate.clear()
        rank = {"prompt": "Which one?", "responses": ["a", "b", "b"]}
        bodies = {"/rank": rank, "/score": {"prompt": "Which one?", "response": "b"}}
        requests = [asyncio.ensure_future(client.post(path, json=body)) for path, body in bodies.items()]
        await until(lambda: engine.active == 2)
        engine.gate.set()
        ranked, scored = [request.json()["detail"] for request in await asyncio.gather(*requests)]
        assert re.fullmatch(r"responses\[\d\]: refused", ranked)
        assert scored == "refused"


async def outcomes(client: httpx.AsyncClient) -> dict[str, int]:
    prefix = 'beholder_score_cache_total{outcome="'
    lines = (await client.get("/metrics")).text.splitlines()
    found = [line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix)]
    return {name: int(float(count)) for name, count in found}
