"""The checkpoint's golden samples, scored through the engine that will serve.

Hashes show that the files are the trained ones; this shows that engine, chat template and image processor still make of
them the scores that training computed.
"""

import asyncio
from dataclasses import dataclass
from functools import partial

from beholder.checkpoint import Checkpoint, Dtype, GoldenSample
from beholder.engine import Engine
from beholder.errors import CheckpointError, GoldenMismatch, InvalidRequest, PromptTooLong, TooManyImages
from beholder.prompts import Prompt, PromptRenderer


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """Scores are raw logits; `tolerance` is how far they may be apart.

    `served`: of those that the engine gave, the furthest from `trained`.
    """

    id: str
    trained: float
    served: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return abs(self.served - self.trained) <= self.tolerance


async def score_golden(
    engine: Engine, renderer: PromptRenderer, checkpoint: Checkpoint, dtype: Dtype
) -> list[GoldenResult]:
    """Score every golden sample past all caches, then twice with them: they are filled, then read.

    One of several images is left out where the engine takes fewer, or shorter prompts.
    """
    samples = checkpoint.golden()
    prompts = await asyncio.to_thread(_render, renderer, checkpoint, samples)
    tolerance = checkpoint.golden_tolerance(dtype)
    served = await asyncio.gather(*map(partial(_score, engine), samples, prompts))
    return [
        GoldenResult(sample.id, sample.score, logit, tolerance)
        for sample, logit in zip(samples, served, strict=True)
        if logit is not None
    ]


def require_passed(results: list[GoldenResult]) -> None:
    """Raise GoldenMismatch, which names the sample that is furthest off."""
    failed = [result for result in results if not result.passed]
    if not failed:
        return
    worst = max(failed, key=lambda result: abs(result.served - result.trained))
    raise GoldenMismatch(
        f"golden sample {worst.id!r} scores {worst.served:.6g}, training computed {worst.trained:.6g} "
        f"(tolerance {worst.tolerance:.3g}; {len(failed)} of {len(results)} samples differ): this engine would serve "
        "other rewards than were trained; check the versions of vllm and transformers and the image backend"
    )


async def _score(engine: Engine, sample: GoldenSample, prompt: Prompt) -> float | None:
    try:
        logits = [(await engine.score(prompt, fresh=fresh)).logit for fresh in (True, False, False)]
    except InvalidRequest as error:
        if len(sample.images) > 1 and isinstance(error, TooManyImages | PromptTooLong):
            return None
        raise CheckpointError(f"golden sample {sample.id!r} cannot be scored: {error}") from None
    return max(logits, key=lambda logit: abs(logit - sample.score))


def _render(renderer: PromptRenderer, checkpoint: Checkpoint, samples: list[GoldenSample]) -> list[Prompt]:
    return [
        renderer.render(sample.conversation(), sample.response, checkpoint.golden_images(sample)) for sample in samples
    ]
