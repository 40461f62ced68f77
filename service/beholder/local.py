"""Score in this process, without HTTP: what `beholder rank --checkpoint` and `beholder verify` do."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from beholder.checkpoint import Checkpoint, read_checkpoint, verify_files
from beholder.engine import Engine
from beholder.engine.choosing import create_engine
from beholder.golden import GoldenResult, require_passed, score_golden
from beholder.images import load_image_file
from beholder.prompts import PromptRenderer, single_turn
from beholder.rewards import best_first, normalize, ranks
from beholder.settings import Settings

_log = logging.getLogger(__name__)


async def rank_locally(
    settings: Settings, prompt: str, images: Sequence[Path], responses: Sequence[str]
) -> dict[str, Any]:
    """What POST /rank answers, without usage. Raises BeholderError; images are read before the engine is loaded."""
    if settings.chosen_engine == "fake":
        _log.warning("the fake engine's scores mean nothing")
    loaded = [load_image_file(path, settings.image_limits) for path in images]
    async with trusted(settings) as (engine, checkpoint, renderer):
        conversation = single_turn(prompt, len(loaded))
        prompts = [renderer.render(conversation, response, loaded) for response in responses]
        results = await asyncio.gather(*(engine.score(item) for item in prompts))
    scores = [result.logit for result in results]
    order = best_first(scores)
    calibration = checkpoint.manifest.calibration
    return {
        "scores": scores,
        "normalized": normalize(scores, calibration) if calibration else None,
        "ranks": ranks(order),
        "order": order,
        "best": order[0],
        "fingerprint": checkpoint.fingerprint,
    }


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
