"""An error that was answered is freed at once: the garbage collector runs rarely, and what a traceback holds are
megabytes of images."""

import asyncio
import base64
import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import torch

from beholder.app import create_app
from beholder.checkpoint import Checkpoint
from beholder.engine import EngineScore
from beholder.engine.transformers import TransformersEngine
from beholder.errors import BeholderError, PromptTooLong
from beholder.models import Model
from beholder.prompts import Prompt, PromptRenderer
from beholder.settings import Settings
from tests.pictures import png
from tests.service.stand_in import StandInEngine, running, serving, until_ready

pytestmark = pytest.mark.anyio
PICTURE = base64.b64encode(png(300, 300)).decode()
TWO = {"prompt": "p", "responses": ["a", "b"]}


class Refusing(StandInEngine):
    """Once it is ready it raises an error of its own for each sample."""

    make_error: Callable[[], Exception] | None = None

    async def score(self, prompt: Prompt, *, fresh: bool = False) -> EngineScore:
        score = await super().score(prompt, fresh=fresh)
        if self.make_error is not None:
            raise self.make_error()
        return score


@contextmanager
def freeing() -> Iterator[None]:
    """Whatever error the block leaves behind is found."""
    logging.disable()  # pytest keeps what is logged
    gc.collect()
    before = {id(error) for error in errors()}
    gc.disable()
    try:
        yield
        assert not [error for error in errors() if id(error) not in before]
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


def errors() -> list[Exception]:
    return [found for found in gc.get_objects() if isinstance(found, (BeholderError, RuntimeError))]


async def refused(client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int) -> None:
    for _ in range(3):
        assert (await client.post(path, json=body)).status_code == status
    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "p", "response": "r", "images": ["AAAA"]},
        {"prompt": "p", "response": "r", "images": [{"sha256": "0" * 64}]},
        {"prompt": "p", "response": "word " * 20_000},
        {"items": [{"prompt": "p", "response": "r"}, {"prompt": "p", "response": "r", "images": ["AAAA"]}]},
        {"prompt": "p"},
    ],
)
async def test_of_a_bad_request(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    with freeing():
        await refused(client, "/score", body, 422)


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("responses", [["a"], ["a", "a", "b"]])
@pytest.mark.parametrize(
    ("make_error", "status"), [(lambda: PromptTooLong("long", 9, 8), 422), (lambda: RuntimeError("boom"), 500)]
)
async def test_of_an_engine(
    settings: Settings,
    checkpoint: Checkpoint,
    renderer: PromptRenderer,
    cache_bytes: int,
    responses: list[str],
    make_error: Callable[[], Exception],
    status: int,
) -> None:
    engine = Refusing.passing_golden(checkpoint, renderer)
    assert isinstance(engine, Refusing)
    cached = settings.model_copy(update={"score_cache_bytes": cache_bytes})
    async with serving(cached, engine, checkpoint, renderer) as client:
        engine.make_error = make_error
        with freeing():
            await refused(client, "/rank", {"prompt": "p", "responses": responses}, status)


@pytest.mark.parametrize("overlong", ["refuse", "truncate"])
async def test_of_the_transformers_engine(
    settings: Settings, checkpoint: Checkpoint, renderer: PromptRenderer, overlong: str
) -> None:
    """Too long with the image, no image that it can process, a batch that dies, one that does not fit in memory."""
    own = settings.model_copy(update={"engine": "transformers", "max_model_len": 150, "overlong": overlong})
    engine = TransformersEngine(own, checkpoint)

    def die(*_: Any) -> None:
        raise RuntimeError("boom")

    def fill(*_: Any) -> None:
        raise torch.OutOfMemoryError

    async with running(create_app(own, [Model(own, engine, checkpoint, renderer)])) as client:
        await until_ready(client)
        layer = engine._model.backbone.language_model.layers[0]
        with freeing():
            await refused(client, "/score", {"prompt": "p", "response": "a " * 100, "images": [PICTURE]}, 422)
        for fault in (die, fill):
            hook = layer.register_forward_pre_hook(fault)
            with freeing():
                await refused(client, "/rank", TWO, 500)
            hook.remove()
        assert (await client.post("/rank", json=TWO)).status_code == 200
