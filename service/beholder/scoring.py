"""From what a client sent to raw rewards: wait for a turn, decode and render (off the event loop, but for what is
quick), score all at once."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from beholder.concurrency import all_or_none
from beholder.engine import EngineScore
from beholder.errors import (
    CheckpointError,
    ImageError,
    InvalidRequest,
    PromptTooLong,
    TooManyImages,
)
from beholder.images.sources import ImageLoader, ImageSource, RequestImages
from beholder.metrics import Metrics
from beholder.models import Model
from beholder.prompts import Conversation, Prompt
from beholder.rewards import normalize
from beholder.truncation import first_cut, score_fitting

QUICK_CHARACTERS: Final = 8192
"""Texts up to this length together are rendered on the event loop, in about two milliseconds."""
PART_CHARACTERS: Final = 8
"""What a part costs beside its characters: empty ones are work too."""

TURNS: Final = 512
"""Requests to one model that are rendered and scored at a time: more than an engine's step holds. A burst would
otherwise be rendered at once, and the event loop would answer nobody meanwhile."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One response to score; `place` names the sample in errors ("items[3]")."""

    conversation: Conversation
    images: tuple[ImageSource, ...]
    response: str
    place: str = ""


class Scorer:
    """Scores samples by one model, those of a request together, so that they share prefix and image.

    The scorers of several models share `images`.
    """

    def __init__(self, model: Model, images: ImageLoader, metrics: Metrics) -> None:
        self.model = model
        self._engine = model.engine
        self._renderer = model.renderer
        self._images = images
        self._metrics = metrics
        self._turns = asyncio.Semaphore(TURNS)
        self._samples = metrics.samples.labels(model.name)
        metrics.rewards.begin(model.name, calibrated=model.calibration is not None)

    async def score(self, samples: Sequence[Sample]) -> list[EngineScore]:
        """The score of each sample, in order. Raises InvalidRequest, ImageError, Overloaded, EngineError."""
        with self._images.request() as images:
            await self._fetch(samples, images)
            started = time.perf_counter()
            async with self._turns:
                prompts = await self._prompts(samples, images, started)
                scores = await all_or_none(
                    self._score(sample, prompt) for sample, prompt in zip(samples, prompts, strict=True)
                )
        self._observe(samples, scores)
        return scores

    def _observe(self, samples: Sequence[Sample], scores: Sequence[EngineScore]) -> None:
        metrics = self._metrics
        sent, cached = sum(score.prompt_tokens for score in scores), sum(score.cached_tokens for score in scores)
        metrics.request_samples.observe(len(samples))
        self._samples.inc(len(scores))
        metrics.prompt_tokens.inc(sent)
        metrics.cached_tokens.inc(cached)
        metrics.computed_tokens.inc(sent - cached)
        rewards = [score.logit for score in scores]
        calibration = self.model.calibration
        if calibration is not None:
            rewards = normalize(rewards, calibration)
        lengths = [len(sample.response) for sample in samples]
        metrics.rewards.observe(self.model.name, rewards, lengths, calibrated=calibration is not None)

    async def _fetch(self, samples: Sequence[Sample], images: RequestImages) -> None:
        """Before a turn, which slow hosts must not hold."""
        for sample in samples:
            with _naming(sample.place):
                count, limit = len(sample.images), self.model.settings.max_images
                if count > limit:
                    raise TooManyImages(f"the conversation has {count} images, at most {limit} are accepted")
                for index, source in enumerate(sample.images):
                    with _naming(f"images[{index}]"):
                        await images.fetch(source)

    async def _prompts(self, samples: Sequence[Sample], images: RequestImages, started: float) -> list[Prompt]:
        """In a thread, unless that takes longer than the work: handing over and back costs half a millisecond."""
        if _characters(samples) <= QUICK_CHARACTERS and all(
            images.load_known(source) for sample in samples for source in sample.images
        ):
            return self._prepare(samples, images, started)
        abandoned = threading.Event()
        try:
            return await asyncio.to_thread(self._prepare, samples, images, started, abandoned)
        finally:
            abandoned.set()

    def _prepare(
        self, samples: Sequence[Sample], images: RequestImages, queued: float, abandoned: threading.Event | None = None
    ) -> list[Prompt]:
        """Ends early when the request was cancelled: a thread cannot be."""
        self._metrics.stages.labels("queue").observe(time.perf_counter() - queued)
        prompts: list[Prompt] = []
        with self._metrics.stages.labels("image").time():
            for sample in samples:
                if abandoned is not None and abandoned.is_set():
                    break
                prompts.append(self._render(sample, images))
        return prompts

    def _render(self, sample: Sample, images: RequestImages) -> Prompt:
        """Raises PromptTooLong at once where nothing is cut, so that the other samples are not encoded for nothing."""
        with _naming(sample.place):
            conversation = self._possible(sample)
            loaded = []
            for index, source in enumerate(sample.images):
                with _naming(f"images[{index}]"):
                    loaded.append(images.load(source))
            try:
                prompt = self._renderer.render(conversation, sample.response, loaded)
            except CheckpointError as error:
                raise InvalidRequest(f"the model's chat template does not take this conversation: {error}") from None
            if not self._cuts:
                self._require_fit(prompt)
            return prompt

    @property
    def _cuts(self) -> bool:
        return self.model.settings.overlong == "truncate"

    def _possible(self, sample: Sample) -> Conversation:
        """The conversation, so short that it may fit. Raises PromptTooLong before megabytes are encoded for nothing."""
        limit = self._engine.max_tokens
        least = self._renderer.least_tokens(() if self._cuts else sample.conversation, sample.response)
        if least > limit:
            what = "response" if self._cuts else "conversation"
            raise PromptTooLong(
                f"the {what} has at least {least} tokens, at most {limit} are accepted: shorten it", least, limit
            )
        return first_cut(self._renderer, sample.conversation, limit) if self._cuts else sample.conversation

    async def _score(self, sample: Sample, prompt: Prompt) -> EngineScore:
        with _naming(sample.place), self._metrics.stages.labels("engine").time():
            return await score_fitting(
                self._score_prompt,
                self._renderer,
                sample.conversation,
                sample.response,
                prompt,
                truncate=self._cuts,
            )

    async def _score_prompt(self, prompt: Prompt) -> EngineScore:
        self._require_fit(prompt)
        return await self._engine.score(prompt)

    def _require_fit(self, prompt: Prompt) -> None:
        """Raises PromptTooLong."""
        tokens, limit = len(prompt.token_ids), self._engine.max_tokens
        if tokens > limit:
            raise PromptTooLong(
                f"the conversation has {tokens} tokens before its images, at most {limit} are accepted: shorten it",
                tokens,
                limit,
            )


def _characters(samples: Sequence[Sample]) -> int:
    """The length of all texts that must be encoded, with something added for each part."""
    parts = [part for sample in samples for turn in sample.conversation for part in turn.parts]
    texts = sum(len(part) for part in parts if isinstance(part, str)) + sum(len(sample.response) for sample in samples)
    return texts + PART_CHARACTERS * len(parts)


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Put the place in front of a client's mistake."""
    try:
        yield
    except (InvalidRequest, ImageError) as error:
        if not place:
            raise
        raise error.at(place) from None
