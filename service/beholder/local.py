"""Score in this process, without HTTP: what `beholder rank --checkpoint` and `beholder verify` do."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from beholder.checkpoint import Checkpoint, read_checkpoint, verify_files
from beholder.client import Ranking
from beholder.engine import Engine
from beholder.engine.choosing import create_engine
from beholder.errors import TooManyImages
from beholder.golden import GoldenResult, require_passed, score_golden
from beholder.images import load_image_file
from beholder.prompts import PromptRenderer, single_turn
from beholder.rewards import best_first, normalize, ranks
from beholder.settings import Settings
from beholder.truncation import score_fitting

_log = logging.getLogger(__name__)


async def rank_locally(settings: Settings, prompt: str, images: Sequence[Path], responses: Sequence[str]) -> Ranking:
    """What a service with these settings answers. Raises BeholderError; images are read before the engine is loaded."""
    if settings.chosen_engine == "fake":
        _log.warning("the fake engine's scores mean nothing")
    if len(images) > settings.max_images:
        raise TooManyImages(f"there are {len(images)} images, at most {settings.max_images} are accepted")
    loaded = [load_image_file(path, settings.image_limits) for path in images]
    conversation = single_turn(prompt, len(loaded))
    async with trusted(settings) as (engine, checkpoint, renderer):
        score = partial(score_fitting, engine.score, renderer, conversation, truncate=settings.overlong == "truncate")
        prompts = [renderer.render(conversation, response, loaded) for response in responses]
        results = await asyncio.gather(*map(score, responses, prompts))
    scores = [result.logit for result in results]
    order = best_first(scores)
    calibration = checkpoint.manifest.calibration
    return Ranking(
        scores=scores,
        normalized=normalize(scores, calibration) if calibration else None,
        ranks=ranks(order),
        order=order,
        best=order[0],
        truncated=[result.truncated for result in results],
        fingerprint=checkpoint.fingerprint,
        prompt_tokens=sum(result.prompt_tokens for result in results),
        cached_tokens=sum(result.cached_tokens for result in results),
    )


async def golden_locally(settings: Settings) -> list[GoldenResult]:
    """The golden samples through a fresh engine."""
    async with running(settings) as (engine, checkpoint, renderer):
        return await _golden(settings, engine, checkpoint, renderer)


async def _golden(
    settings: Settings, engine: Engine, checkpoint: Checkpoint, renderer: PromptRenderer
) -> list[GoldenResult]:
    return await score_golden(engine, renderer, checkpoint, settings.dtype or checkpoint.manifest.dtype)


@asynccontextmanager
async def trusted(settings: Settings) -> AsyncIterator[tuple[Engine, Checkpoint, PromptRenderer]]:
    """`running`, once files and golden samples have proved right, as `beholder serve` wants them. Raises BeholderError.

    The fake engine's scores mean nothing, so its golden samples are not checked.
    """
    if settings.verify_files:
        await asyncio.to_thread(verify_files, read_checkpoint(settings.checkpoint))
    async with running(settings) as (engine, checkpoint, renderer):
        if settings.chosen_engine != "fake":
            require_passed(await _golden(settings, engine, checkpoint, renderer))
        yield engine, checkpoint, renderer


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Engine, Checkpoint, PromptRenderer]]:
    """The engine that `settings` choose, started; stopped after the block. Raises BeholderError."""
    checkpoint = read_checkpoint(settings.checkpoint)
    engine = create_engine(settings, checkpoint)
    renderer = checkpoint.renderer()
    try:
        await engine.start()
        yield engine, checkpoint, renderer
    finally:
        await engine.stop()
