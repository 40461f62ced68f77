"""From what a client sent to raw rewards: admit, decode and render off the event loop, score all at once."""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from beholder.engine import Engine, EngineScore
from beholder.errors import ImageError, InvalidRequest, Overloaded
from beholder.images import ImageLimits, LoadedImage, decode_base64, load_image
from beholder.metrics import Metrics
from beholder.prompts import Conversation, Prompt, PromptRenderer


@dataclass(frozen=True, slots=True)
class Sample:
    """One response to score. `images` are data URLs or base64; `place` names the sample in errors ("items[3]")."""

    conversation: Conversation
    images: tuple[str, ...]
    response: str
    place: str = ""


class Scorer:
    """Scores samples; what one request sends is in flight together, so that samples share prefix and image."""

    def __init__(
        self, engine: Engine, renderer: PromptRenderer, limits: ImageLimits, max_in_flight: int, metrics: Metrics
    ) -> None:
        self._engine = engine
        self._renderer = renderer
        self._limits = limits
        self._max_in_flight = max_in_flight
        self._metrics = metrics
        self.in_flight = 0
        metrics.in_flight_limit.set(max_in_flight)

    async def score(self, samples: Sequence[Sample]) -> list[EngineScore]:
        """The score of each sample, in order. Raises InvalidRequest, ImageError, Overloaded, EngineError."""
        with self._admit(len(samples)):
            prompts = await asyncio.to_thread(self._prepare, samples)
            scores = await _all([self._score(sample, prompt) for sample, prompt in zip(samples, prompts, strict=True)])
        self._metrics.samples.inc(len(scores))
        self._metrics.prompt_tokens.inc(sum(score.prompt_tokens for score in scores))
        self._metrics.cached_tokens.inc(sum(score.cached_tokens for score in scores))
        return scores

    @contextmanager
    def _admit(self, count: int) -> Iterator[None]:
        if count > self._max_in_flight:
            raise InvalidRequest(
                f"the request has {count} samples, at most {self._max_in_flight} are accepted: split it"
            )
        if self.in_flight + count > self._max_in_flight:
            raise Overloaded(f"{self.in_flight} samples are in flight, at most {self._max_in_flight} may be: retry")
        self._count(count)
        try:
            yield
        finally:
            self._count(-count)

    def _count(self, change: int) -> None:
        self.in_flight += change
        self._metrics.in_flight.set(self.in_flight)

    def _prepare(self, samples: Sequence[Sample]) -> list[Prompt]:
        """Runs in a thread. An image that several samples share is decoded once."""
        decoded: dict[str, LoadedImage] = {}
        return [self._render(sample, decoded) for sample in samples]

    def _render(self, sample: Sample, decoded: dict[str, LoadedImage]) -> Prompt:
        with _naming(sample.place):
            for index, text in enumerate(sample.images):
                if text not in decoded:
                    with _naming(f"images[{index}]"):
                        decoded[text] = load_image(decode_base64(text, self._limits), self._limits)
            images = [decoded[text] for text in sample.images]
            return self._renderer.render(sample.conversation, sample.response, images)

    async def _score(self, sample: Sample, prompt: Prompt) -> EngineScore:
        with _naming(sample.place):
            return await self._engine.score(prompt)


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Put the place in front of a client's mistake."""
    try:
        yield
    except (InvalidRequest, ImageError) as error:
        if not place:
            raise
        raise type(error)(f"{place}: {error}") from None


async def _all(scores: Sequence[Coroutine[Any, Any, EngineScore]]) -> list[EngineScore]:
    """All or the first error; on an error the others are cancelled and awaited, so nothing scores for nobody."""
    tasks = [asyncio.ensure_future(score) for score in scores]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
