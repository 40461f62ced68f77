"""From what a client sent to raw rewards: admit, decode and render off the event loop, score all at once."""

import asyncio
import itertools
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from beholder.checkpoint import Calibration
from beholder.engine import Engine, EngineScore
from beholder.errors import BeholderError, ImageError, InvalidRequest, Overloaded
from beholder.images import ImageLimits, LoadedImage, decode_base64, load_image
from beholder.metrics import Metrics
from beholder.prompts import Conversation, Prompt, PromptRenderer
from beholder.rewards import normalize


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
        self,
        engine: Engine,
        renderer: PromptRenderer,
        limits: ImageLimits,
        max_in_flight: int,
        metrics: Metrics,
        calibration: Calibration | None = None,
    ) -> None:
        self._engine = engine
        self._renderer = renderer
        self._limits = limits
        self._max_in_flight = max_in_flight
        self._metrics = metrics
        self._calibration = calibration
        self.in_flight = 0
        self._accepted: dict[int, float] = {}
        self._numbers = itertools.count()
        metrics.in_flight_limit.set(max_in_flight)
        metrics.oldest.set_function(self._oldest_s)
        metrics.rewards.calibrated.set(calibration is not None)

    async def score(self, samples: Sequence[Sample]) -> list[EngineScore]:
        """The score of each sample, in order. Raises InvalidRequest, ImageError, Overloaded, EngineError."""
        with self._admit(len(samples)):
            prompts = await asyncio.to_thread(self._prepare, samples, time.perf_counter())
            scores = await _all([self._score(sample, prompt) for sample, prompt in zip(samples, prompts, strict=True)])
        self._observe(samples, scores)
        return scores

    def _observe(self, samples: Sequence[Sample], scores: Sequence[EngineScore]) -> None:
        metrics = self._metrics
        sent, cached = sum(score.prompt_tokens for score in scores), sum(score.cached_tokens for score in scores)
        metrics.request_samples.observe(len(samples))
        metrics.samples.inc(len(scores))
        metrics.prompt_tokens.inc(sent)
        metrics.cached_tokens.inc(cached)
        metrics.computed_tokens.inc(sent - cached)
        rewards = [score.logit for score in scores]
        if self._calibration is not None:
            rewards = normalize(rewards, self._calibration)
        lengths = [len(sample.response) for sample in samples]
        metrics.rewards.observe(rewards, lengths, calibrated=self._calibration is not None)

    @contextmanager
    def _admit(self, count: int) -> Iterator[None]:
        if count > self._max_in_flight:
            raise InvalidRequest(
                f"the request has {count} samples, at most {self._max_in_flight} are accepted: split it"
            )
        if self.in_flight + count > self._max_in_flight:
            raise Overloaded(f"{self.in_flight} samples are in flight, at most {self._max_in_flight} may be: retry")
        self._count(count)
        number = next(self._numbers)
        self._accepted[number] = time.monotonic()
        try:
            yield
        finally:
            del self._accepted[number]
            self._count(-count)

    def _count(self, change: int) -> None:
        self.in_flight += change
        self._metrics.in_flight.set(self.in_flight)

    def _oldest_s(self) -> float:
        """Requests are kept in the order of their arrival."""
        return time.monotonic() - next(iter(self._accepted.values()), time.monotonic())

    def _prepare(self, samples: Sequence[Sample], queued: float) -> list[Prompt]:
        """Runs in a thread. An image that several samples share is decoded once."""
        self._metrics.stages.labels("queue").observe(time.perf_counter() - queued)
        decoded: dict[str, LoadedImage] = {}
        with self._metrics.stages.labels("image").time():
            return [self._render(sample, decoded) for sample in samples]

    def _render(self, sample: Sample, decoded: dict[str, LoadedImage]) -> Prompt:
        with _naming(sample.place):
            for index, text in enumerate(sample.images):
                if text not in decoded:
                    with _naming(f"images[{index}]"):
                        decoded[text] = self._load(text)
            images = [decoded[text] for text in sample.images]
            return self._renderer.render(sample.conversation, sample.response, images)

    def _load(self, text: str) -> LoadedImage:
        try:
            image = load_image(decode_base64(text, self._limits), self._limits)
        except BeholderError as error:
            self._metrics.images.labels(error.code).inc()
            raise
        self._metrics.images.labels("ok").inc()
        return image

    async def _score(self, sample: Sample, prompt: Prompt) -> EngineScore:
        with _naming(sample.place), self._metrics.stages.labels("engine").time():
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
