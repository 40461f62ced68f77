"""An engine in this process, or services by URL."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import cached_property
from typing import Any, Final

from beholder.checkpoint import read_checkpoint
from beholder.client import AsyncRewardClient, ModelCard, RewardClient
from beholder.client.base_urls import parse_base_url
from beholder.errors import ConfigurationError, EngineError, EngineUnavailable
from beholder.local import trusted
from beholder.offline.pipeline import scored_in_order
from beholder.offline.scorers import EngineScorer, RecordScorer, ServiceScorer
from beholder.offline.scoring import Job, Position
from beholder.offline.tasks import Scored, Task
from beholder.settings import Settings

_CONNECTIONS: Final = 64
_ASKING_S: Final = 10.0
_ACCEPTANCE: Final = (
    "overlong",
    "max_images",
    "max_image_bytes",
    "max_image_pixels",
    "max_image_aspect",
    "max_image_frames",
)
"""Settings that decide whether a response is scored, and whether its prompt is cut; a model's card has them too."""
_DECIDING: Final = ("fingerprint", "engine", "dtype", "input", "calibrated", "max_tokens", *_ACCEPTANCE)
"""What two services' cards must agree in, or their scores and refusals would not be of one kind."""
_SWITCH_S: Final = 0.0005
_ENGINE_ARGS: Final[dict[str, dict[str, Any]]] = {
    "vllm": {"mm_processor_cache_gb": 0.5},
    "transformers": {"image_cache_bytes": 64 * 2**20},
}

_log = logging.getLogger(__name__)


class EngineBackend:
    """Loads the checkpoint here; its golden samples are checked first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def about(self) -> dict[str, Any]:
        return about(self._settings)

    def run(self, job: Job, position: Position, accept: Callable[[Scored], None]) -> None:
        asyncio.run(self._run(job, position, accept))

    async def _run(self, job: Job, position: Position, accept: Callable[[Scored], None]) -> None:
        async with engine_scorer(self._settings) as scorer:
            await drive(job.tasks(position), scorer, job.in_flight, accept)


class ServiceBackend:
    """Scores with running services, which must all serve one checkpoint alike: as `model`, or as their first model.

    Those that do not answer at the beginning have no part in the run. Raises EngineUnavailable, ConfigurationError.
    """

    def __init__(self, urls: Sequence[str], api_key: str | None = None, model: str | None = None) -> None:
        self._urls = urls
        self._api_key = api_key
        self._model = model

    @cached_property
    def about(self) -> dict[str, Any]:
        """As `about` names it, but for `max_model_len`: a service says what came of it."""
        return {
            name: getattr(self._card, name) for name in ("fingerprint", "engine", "dtype", "max_tokens", *_ACCEPTANCE)
        }

    def run(self, job: Job, position: Position, accept: Callable[[Scored], None]) -> None:
        asyncio.run(self._run(job, position, accept))

    async def _run(self, job: Job, position: Position, accept: Callable[[Scored], None]) -> None:
        async with AsyncRewardClient(
            [*self._cards],
            api_key=self._api_key,
            fingerprint=self.about["fingerprint"],
            model=self._model,
            max_concurrency=_CONNECTIONS,
        ) as client:
            scorer = ServiceScorer(client, self._card.max_image_bytes)
            await drive(job.tasks(position), scorer, job.in_flight, accept)

    @property
    def _card(self) -> ModelCard:
        """They say the same of all that counts."""
        return next(iter(self._cards.values()))

    @cached_property
    def _cards(self) -> dict[str, ModelCard]:
        """What each service that answers says about the model, by its URL."""
        cards: dict[str, ModelCard] = {}
        problems: list[str] = []
        for url in self._urls:
            try:
                cards[url] = self._ask(url)
            except EngineUnavailable as error:
                problems.append(str(error))
        if not cards:
            raise EngineUnavailable(problems[-1])
        for problem in problems:
            _log.warning("scoring without a service: %s", problem)
        _require_alike(cards)
        return cards

    def _ask(self, url: str) -> ModelCard:
        try:
            with RewardClient(url, api_key=self._api_key, retries=0, deadline_s=_ASKING_S) as client:
                cards = client.models()
        except EngineError as error:
            raise EngineUnavailable(f"{error}: is a Beholder service running there?") from None
        return _card_of(cards, self._model)


def _require_alike(cards: Mapping[str, ModelCard]) -> None:
    """Raises ConfigurationError where two differ in what decides a score."""
    (first, expected), *others = cards.items()
    for url, card in others:
        for name in _DECIDING:
            here, there = getattr(expected, name), getattr(card, name)
            if here != there:
                raise ConfigurationError(
                    f"{parse_base_url(first)} scores with {name} {here}, {parse_base_url(url)} with {there}: two would "
                    "mix in one file; give --url of services that are alike"
                )


def _card_of(cards: Sequence[ModelCard], model: str | None) -> ModelCard:
    """Raises ConfigurationError where none is the `model`."""
    if model is None:
        return cards[0]
    for card in cards:
        if model in (*card.names, card.fingerprint):
            return card
    known = ", ".join(name for card in cards for name in card.names)
    raise ConfigurationError(f"--model {model}: the service has {known}")


def about(settings: Settings) -> dict[str, Any]:
    """What decides a score or a refusal; the same here and on a cluster, so that either may finish what the other
    began."""
    checkpoint = read_checkpoint(settings.checkpoint)
    return {
        "fingerprint": checkpoint.fingerprint,
        "engine": settings.chosen_engine,
        "dtype": settings.dtype or checkpoint.manifest.dtype,
        "max_model_len": settings.max_model_len,
        **{name: getattr(settings, name) for name in _ACCEPTANCE},
    }


def with_small_caches(settings: Settings) -> Settings:
    """The images of a file mostly come once: caches as large as the service's would only fill memory."""
    engine_args = {**_ENGINE_ARGS.get(settings.chosen_engine, {}), **settings.engine_args}
    return settings.model_copy(update={"engine_args": engine_args})


def plain(settings: Settings) -> dict[str, Any]:
    """What was set, whichever way: for `load_settings` in a process whose own environment then changes nothing."""
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return {**values, "checkpoint": settings.checkpoint.resolve()}


def share_interpreter() -> None:
    """Threads of this process take turns sooner.

    Preparing records is Python; after each operation the thread of the model's forward waits for its turn, by default
    up to 5 ms.
    """
    sys.setswitchinterval(_SWITCH_S)


@asynccontextmanager
async def engine_scorer(settings: Settings) -> AsyncIterator[EngineScorer]:
    """A loaded engine that scores its golden samples as trained. Raises BeholderError."""
    share_interpreter()
    async with trusted(with_small_caches(settings)) as (engine, checkpoint, renderer):
        yield EngineScorer(engine, renderer, settings, checkpoint.manifest.calibration)


async def drive(tasks: Iterable[Task], scorer: RecordScorer, in_flight: int, accept: Callable[[Scored], None]) -> None:
    """Score `tasks` with a scorer that is ready."""
    async with aclosing(scored_in_order(tasks, scorer, in_flight)) as results:
        async for scored in results:
            accept(scored)
