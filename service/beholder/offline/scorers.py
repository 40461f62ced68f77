"""Who scores a record: an engine in this process, or running services.

What is wrong with a response or its images is that response's outcome. A fault of the engine, of the network or of what
stands between is raised: it says nothing about the record, and the run can be taken up again.
"""

import asyncio
import stat
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

from beholder.checkpoint import Calibration
from beholder.client import AsyncRewardClient
from beholder.concurrency import all_or_none
from beholder.engine import Engine, EngineScore, score_group
from beholder.errors import (
    BeholderError,
    EngineError,
    EngineUnavailable,
    ImageError,
    ImageNotFound,
    ImageTooLarge,
    InvalidRequest,
    ModelNotFound,
    PromptTooLong,
    RequestTimeout,
    TooManyImages,
)
from beholder.images import LoadedImage, load_image, load_image_file
from beholder.offline.tasks import Outcome, Task
from beholder.prompts import Conversation, Prompt, PromptRenderer, single_turn
from beholder.rewards import normalize
from beholder.settings import Settings
from beholder.truncation import first_cut, score_fitting

ATTEMPTS: Final = 3
"""For a response that the engine, or a service, fails on while it scores others."""
_PREPARING: Final = 4  # threads
_REMEMBERED: Final = 8  # pictures: records of one prompt mostly stand beside each other


class RecordScorer(Protocol):
    """Scores the responses of a few records; called concurrently."""

    async def score(self, tasks: Sequence[Task]) -> list[tuple[Outcome, ...]]:
        """For each record one outcome a response. Raises BeholderError for faults that are not the records'."""


@dataclass(frozen=True, slots=True)
class _Item:
    """A response that can be scored: what the engine takes, and what that was rendered from."""

    prompt: Prompt
    conversation: Conversation
    response: str


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is scored for each response, or its error."""

    items: list[_Item | Outcome]
    pixels: int


class EngineScorer:
    """Decodes and renders in threads, and hands the engine all responses of a record at once."""

    def __init__(
        self, engine: Engine, renderer: PromptRenderer, settings: Settings, calibration: Calibration | None
    ) -> None:
        self._engine = engine
        self._renderer = renderer
        self._limits = settings.image_limits
        self._max_images = settings.max_images
        self._cuts = settings.overlong == "truncate"
        self._calibration = calibration
        self._threads = ThreadPoolExecutor(_PREPARING, "prepare")
        self._preparing = asyncio.Semaphore(_PREPARING)
        self._room = _PixelRoom(settings.max_decoded_pixels)
        self._load_file = lru_cache(maxsize=_REMEMBERED)(self._load_regular_file)

    async def score(self, tasks: Sequence[Task]) -> list[tuple[Outcome, ...]]:
        async with self._preparing:
            await self._room.wait()
            loop = asyncio.get_running_loop()
            prepared = await loop.run_in_executor(self._threads, lambda: [*map(self._prepare, tasks)])
            pixels = sum(record.pixels for record in prepared)
            self._room.take(pixels)
        try:
            outcomes = iter(await self._score([item for record in prepared for item in record.items]))
        finally:
            self._room.give(pixels)
        return [tuple(islice(outcomes, len(record.items))) for record in prepared]

    async def _score(self, items: Sequence[_Item | Outcome]) -> list[Outcome]:
        """All at once; then again, each alone, those on which the engine failed."""
        scores = iter(await self._score_together([item for item in items if isinstance(item, _Item)]))
        outcomes: list[Outcome] = []
        for item in items:
            if isinstance(item, Outcome):
                outcomes.append(item)
            elif isinstance(found := next(scores), EngineScore):
                outcomes.append(self._of_score(found))
            else:
                outcomes.append(await _outcome(partial(self._score_alone, item), found))
        return outcomes

    async def _score_together(self, items: Sequence[_Item]) -> list[EngineScore | BaseException]:
        """Each item's score, or what failed; what is too long is shortened where the settings say so."""
        scores = await score_group(self._engine, [item.prompt for item in items])
        long = [index for index, score in enumerate(scores) if self._cuts and isinstance(score, PromptTooLong)]
        shortened = (self._score_item(items[index]) for index in long)
        for index, score in zip(long, await asyncio.gather(*shortened, return_exceptions=True), strict=True):
            scores[index] = score
        return scores

    async def _score_alone(self, item: _Item) -> Outcome:
        return self._of_score(await self._score_item(item))

    async def _score_item(self, item: _Item) -> EngineScore:
        return await score_fitting(
            self._engine.score, self._renderer, item.conversation, item.response, item.prompt, truncate=self._cuts
        )

    def _of_score(self, score: EngineScore) -> Outcome:
        normalized = normalize([score.logit], self._calibration)[0] if self._calibration else None
        return Outcome(score.logit, normalized, truncated=score.truncated)

    def _prepare(self, task: Task) -> _Prepared:
        """Runs in a thread."""
        if task.problem:
            return _Prepared([task.problem], 0)
        try:
            images = self._load_images(task.images)
        except Exception as error:
            return _Prepared([_of_exception(error)] * len(task.responses), 0)
        conversation = single_turn(task.prompt, len(images))
        if self._cuts:
            conversation = first_cut(self._renderer, conversation, self._engine.max_tokens)
        items: list[_Item | Outcome] = []
        for response in task.responses:
            try:
                prompt = self._renderer.render(conversation, response, images)
                items.append(_Item(prompt, conversation, response))
            except Exception as error:
                items.append(_of_exception(error))
        return _Prepared(items, sum(image.pixels.width * image.pixels.height for image in images))

    def _load_images(self, images: Sequence[Path | bytes]) -> list[LoadedImage]:
        if len(images) > self._max_images:
            raise TooManyImages(f"the record has {len(images)} images, at most {self._max_images} are accepted")
        return [load_image(i, self._limits) if isinstance(i, bytes) else self._load_file(i) for i in images]

    def _load_regular_file(self, path: Path) -> LoadedImage:
        require_image_file(path, self._limits.max_bytes)
        return load_image_file(path, self._limits)


class ServiceScorer:
    """Ranks each record's responses over HTTP; `client` spreads them, retries and pins the checkpoint.

    Image files above `max_image_bytes` are not sent: services that refuse one may hang up while it is on its way.
    """

    def __init__(self, client: AsyncRewardClient, max_image_bytes: int) -> None:
        self._client = client
        self._max_image_bytes = max_image_bytes

    async def score(self, tasks: Sequence[Task]) -> list[tuple[Outcome, ...]]:
        return await all_or_none(self._score_record(task) for task in tasks)

    async def _score_record(self, task: Task) -> tuple[Outcome, ...]:
        if task.problem:
            return (task.problem,)
        try:
            for image in task.images:
                if isinstance(image, Path):
                    require_image_file(image, self._max_image_bytes)
            return await self._rank(task)
        except (ImageError, ValueError) as error:
            return (_of_exception(error),) * len(task.responses)
        except BeholderError as error:
            if not _is_the_records(error):
                raise
        # One of the responses is refused: which one shows when each is sent alone.
        return tuple([await _outcome(partial(self._score, task, response)) for response in task.responses])

    async def _rank(self, task: Task) -> tuple[Outcome, ...]:
        ranking = await self._client.rank(task.prompt, task.images, task.responses)
        normalized: Sequence[float | None] = ranking.normalized or [None] * len(ranking.scores)
        return tuple(
            Outcome(score, deviations, truncated=truncated)
            for score, deviations, truncated in zip(ranking.scores, normalized, ranking.truncated, strict=True)
        )

    async def _score(self, task: Task, response: str) -> Outcome:
        try:
            score = await self._client.score(task.prompt, task.images, response)
        except BeholderError as error:
            if _is_failure(error):
                await self._require_service(error)
            raise
        return Outcome(score.score, score.normalized, truncated=score.truncated)

    async def _require_service(self, failure: BeholderError) -> None:
        """Raises EngineUnavailable where the service, or what stands before it, fails on a harmless text as well: then
        `failure` says nothing about its record."""
        try:
            await self._client.score("Does it answer?", (), f"Yes: {uuid.uuid4()}.")  # which no cache has
        except BeholderError as error:
            raise EngineUnavailable(f"{failure} (nor is anything else scored: {error})") from None


def require_image_file(path: Path, max_bytes: int) -> None:
    """Raises ImageNotFound, ImageTooLarge; a device or a pipe would be read for ever."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise ImageNotFound(f"image {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ImageNotFound(f"image {path} is not a file")
    if found.st_size > max_bytes:
        raise ImageTooLarge(f"image {path} has {found.st_size} bytes, at most {max_bytes} are accepted")


class _PixelRoom:
    """Keeps decoded pictures within `limit` pixels; what is being prepared may go beyond it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._free = asyncio.Event()
        self._free.set()

    async def wait(self) -> None:
        await self._free.wait()

    def take(self, pixels: int) -> None:
        self._held += pixels
        if self._held >= self._limit:
            self._free.clear()

    def give(self, pixels: int) -> None:
        self._held -= pixels
        if self._held < self._limit:
            self._free.set()


async def _outcome(score: Callable[[], Awaitable[Outcome]], failure: BaseException | None = None) -> Outcome:
    """The outcome, or the error where it is this response's; with `failure` of a first attempt, that of the next ones.

    Raises any other fault.
    """
    failures = [] if failure is None else [failure]
    while not failures or (_is_failure(failures[-1]) and len(failures) < ATTEMPTS):
        try:
            return await score()
        except BeholderError as error:
            failures.append(error)  # its batch may have failed on another one
    last = failures[-1]
    if not isinstance(last, BeholderError) or not _is_the_records(last):
        raise last
    return Outcome.of_error(last)


def _is_the_records(error: BeholderError) -> bool:
    """Whether the record is at fault: a slow body is the network's fault, and an unknown model the whole run's."""
    if isinstance(error, RequestTimeout | ModelNotFound):
        return False
    return isinstance(error, InvalidRequest | ImageError) or _is_failure(error)


def _is_failure(error: BaseException) -> bool:
    """An EngineError itself is of one batch, as is a service's 500; its subclasses say that the engine is gone, full or
    late."""
    return type(error) in (EngineError, BeholderError)


def _of_exception(error: Exception) -> Outcome:
    """Decoders and tokenizers raise what they like on hostile input; whatever it is, it is this record's."""
    if isinstance(error, BeholderError):
        return Outcome.of_error(error)
    return Outcome(code="unexpected", message=f"{type(error).__name__}: {error}")
