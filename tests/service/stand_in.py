"""A deterministic engine without a model, and an application around it, for tests of the HTTP wiring."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
from fastapi import FastAPI

from beholder.app import create_app
from beholder.checkpoint import Checkpoint
from beholder.engine import Activity, EngineScore
from beholder.errors import EngineUnavailable
from beholder.models import Model
from beholder.prompts import Prompt, PromptRenderer
from beholder.settings import Settings

Key = tuple[tuple[int, ...], tuple[str, ...]]


def _key(prompt: Prompt) -> Key:
    return prompt.token_ids, tuple(image.sha256 for image in prompt.images)


class StandInEngine:
    """Scores are a function of the prompt; faults are switched on by its attributes."""

    max_tokens = 4096

    def __init__(self, known: dict[Key, float]) -> None:
        self._known = known
        self.activity = Activity()
        self._healthy = False
        self.start_error: Exception | None = None
        self.score_error: Exception | None = None
        self.gate = asyncio.Event()
        """Scores wait for it."""
        self.gate.set()
        self.offset = 0.0
        """Added to the score of what is no golden sample."""
        self.started = 0
        self.fresh = 0
        """How many of them were to be computed past all caches."""
        self.active = 0
        self.peak = 0
        self.stopped = False
        self.images_seen: list[object] = []

    @classmethod
    def passing_golden(cls, checkpoint: Checkpoint, renderer: PromptRenderer) -> "StandInEngine":
        known = {}
        for sample in checkpoint.golden():
            images = checkpoint.golden_images(sample)
            known[_key(renderer.render(sample.conversation(), sample.response, images))] = sample.score
        return cls(known)

    @property
    def healthy(self) -> bool:
        return self._healthy

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error
        self._healthy = True

    async def stop(self) -> None:
        self.stopped = True
        self._healthy = False

    def forget_golden(self) -> None:
        """Score the golden samples otherwise than training did."""
        self._known.clear()

    def die(self) -> None:
        self._healthy = False
        self.gate.set()

    async def score(self, prompt: Prompt, *, fresh: bool = False) -> EngineScore:
        self.started += 1
        self.fresh += fresh
        self.active += 1
        self.peak = max(self.peak, self.active)
        self.images_seen.extend(prompt.images)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            if not self._healthy:
                raise EngineUnavailable("the engine died")
            if self.score_error is not None:
                raise self.score_error
            return EngineScore(self.logit(prompt), len(prompt.token_ids), 0)
        finally:
            self.active -= 1

    def logit(self, prompt: Prompt) -> float:
        key = _key(prompt)
        digest = hashlib.sha256(repr(key).encode()).digest()
        return self._known.get(key, int.from_bytes(digest[:4]) / 2**28 - 8 + self.offset)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `app` whose lifespan has begun; it may not be ready yet."""
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield client


@asynccontextmanager
async def serving(
    settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that is ready."""
    async with running(create_app(settings, [Model(settings, engine, checkpoint, renderer)])) as client:
        await until_ready(client)
        yield client


Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
"""`serving` the stand-in engine; its keywords are settings that differ."""


async def until_ready(client: httpx.AsyncClient, status: int = 200) -> httpx.Response:
    """The first answer of /readyz with `status`."""
    async with asyncio.timeout(10):
        while (response := await client.get("/readyz")).status_code != status:  # noqa: ASYNC110 (it is over HTTP)
            await asyncio.sleep(0.01)
    return response


async def until(condition: Callable[[], object]) -> None:
    """Return when `condition` is true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)
