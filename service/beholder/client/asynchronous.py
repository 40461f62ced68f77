"""The client on asyncio: every request, retry and failover is here; the synchronous one drives it."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Self, TypeVar

import httpx
from tqdm import tqdm

from beholder.client.answers import Best, ModelCard, Ranking, Score, read_models, read_ranking, read_score
from beholder.client.attempts import Attempts
from beholder.client.exchange import Channel
from beholder.client.inputs import ImageInput, Prompt, check_sequence
from beholder.client.replicas import CONNECT_S, open_replicas, rendezvous
from beholder.client.requests import MODELS, Call, make_call
from beholder.concurrency import all_or_none
from beholder.errors import BeholderError, ConfigurationError, DeadlineExceeded, FingerprintMismatch

DEADLINE_S: Final = 330.0
"""Longer than the service's own (`request_deadline_s`), so that it says what was late before its client hangs up."""
FIRST: Final = "first"
"""As `fingerprint`: pin the checkpoint of the first answer."""
Result = TypeVar("Result")


class Sample(NamedTuple):
    """What `score` takes, for score_many; a plain tuple will do."""

    prompt: Prompt
    images: Sequence[ImageInput]
    response: str


class Candidates(NamedTuple):
    """What `rank` takes, for rank_many; a plain tuple will do."""

    prompt: Prompt
    images: Sequence[ImageInput]
    responses: Sequence[str]


Samples = Iterable[Sample | tuple[Prompt, Sequence[ImageInput], str]]
CandidateSets = Iterable[Candidates | tuple[Prompt, Sequence[ImageInput], Sequence[str]]]


class AsyncRewardClient:
    """Scores and ranks with the service at one base URL, or at several that serve the same checkpoint.

    A call returns the service's answer or raises BeholderError within `deadline_s` seconds, counted from when it gets
    one of the `max_concurrency` places. Scoring has no side effects, so lost connections and 503 are retried until then
    (or `retries` times), at another URL where there is one; a mistake of the caller (4xx) never is. An attempt may take
    `attempt_s` seconds, where that is set: with several URLs, a replica that hangs costs that and no more.

    `model` is the model's name where the service has several. `fingerprint` pins the checkpoint ("first": that of the
    first answer); an answer of another raises FingerprintMismatch. `transport` replaces the network. Calls may come
    from several event loops. A copy, and what comes of a pickle (which has the keys in it), is a client with the same
    arguments and connections of its own; it pins what this one has pinned. Raises ConfigurationError on arguments that
    cannot be used.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        *,
        api_key: str | None = None,
        fingerprint: str | None = None,
        model: str | None = None,
        deadline_s: float = DEADLINE_S,
        attempt_s: float | None = None,
        max_concurrency: int = 32,
        retries: int | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if deadline_s <= 0 or max_concurrency < 1:
            raise ConfigurationError(f"deadline_s {deadline_s} and max_concurrency {max_concurrency} must be positive")
        if attempt_s is not None and not attempt_s > 0:
            raise ConfigurationError(f"attempt_s {attempt_s} must be positive; None leaves attempts to deadline_s")
        self._base_urls = base_urls if isinstance(base_urls, str) else tuple(base_urls)
        self._replicas = open_replicas(self._base_urls)
        self._api_key = api_key
        self._pinned = {} if fingerprint in (None, FIRST) else {FIRST: fingerprint}
        self._pins = fingerprint is not None
        self._model = model
        self._deadline_s = deadline_s
        self._attempt_s = attempt_s
        self._max_concurrency = max_concurrency
        self._retries = retries
        self._transport = transport
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple["partial[Self]", tuple[Any, ...]]:
        options: dict[str, Any] = {
            "api_key": self._api_key,
            "fingerprint": self._pinned.get(FIRST, FIRST if self._pins else None),
            "model": self._model,
            "deadline_s": self._deadline_s,
            "attempt_s": self._attempt_s,
            "max_concurrency": self._max_concurrency,
            "retries": self._retries,
            "transport": self._transport,
        }
        return partial(type(self), **options), (self._base_urls,)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of this event loop; a later call opens new ones."""
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.channel.close()

    async def models(self) -> list[ModelCard]:
        """What the service has, its first model first; with several URLs, what the first that answers has. Nothing is
        pinned, and no pin is checked. Raises BeholderError."""
        return read_models(await self._answer("/models", lambda: MODELS))

    async def score(self, prompt: Prompt, images: Sequence[ImageInput], response: str) -> Score:
        """The reward of one response. Raises BeholderError."""
        score = read_score(await self._ask("/score", prompt, images, {"response": response}))
        self._check(score.fingerprint)
        return score

    async def rank(self, prompt: Prompt, images: Sequence[ImageInput], responses: Sequence[str]) -> Ranking:
        """The rewards of all responses and their order. Raises BeholderError."""
        check_sequence("responses", responses)
        answer = await self._ask("/rank", prompt, images, {"responses": list(responses)})
        ranking = read_ranking(answer, len(responses))
        self._check(ranking.fingerprint)
        return ranking

    async def best_of(self, prompt: Prompt, images: Sequence[ImageInput], responses: Sequence[str]) -> Best:
        """The response with the greatest reward. Raises BeholderError."""
        ranking = await self.rank(prompt, images, responses)
        return Best(responses[ranking.best], ranking.best, ranking.scores[ranking.best])

    async def score_many(self, samples: Samples, *, progress: bool = False) -> list[Score]:
        """The reward of each sample, in order. The first error is raised, and the rest is cancelled."""
        return await self._each(self.score, samples, progress)

    async def try_score_many(self, samples: Samples, *, progress: bool = False) -> list[Score | BeholderError]:
        """The reward of each sample, in order, with its error in its place where it failed."""

        async def attempt(*sample: Any) -> Score | BeholderError:
            try:
                return await self.score(*sample)
            except BeholderError as error:
                return error

        return await self._each(attempt, samples, progress)

    async def rank_many(self, sets: CandidateSets, *, progress: bool = False) -> list[Ranking]:
        """The ranking of each set, in order. The first error is raised, and the rest is cancelled."""
        return await self._each(self.rank, sets, progress)

    async def _each(
        self, function: Callable[..., Awaitable[Result]], items: Iterable[tuple[Any, ...]], progress: bool
    ) -> list[Result]:
        everything = list(items)
        results: dict[int, Result] = {}
        numbers = iter(range(len(everything)))
        with tqdm(total=len(everything), desc="scoring", unit="request", disable=not progress) as bar:

            async def work() -> None:
                for number in numbers:
                    results[number] = await function(*everything[number])
                    bar.update()

            await all_or_none(work() for _ in range(min(self._max_concurrency, len(everything))))
        return [results[number] for number in range(len(everything))]

    async def _ask(
        self, path: str, prompt: Prompt, images: Sequence[ImageInput], rest: dict[str, Any]
    ) -> dict[str, Any]:
        check_sequence("images", images)
        chosen = {} if self._model is None else {"model": self._model}
        return await self._answer(path, lambda: make_call(path, prompt, images, rest | chosen))

    async def _answer(self, path: str, make: Callable[[], Call]) -> dict[str, Any]:
        """`make` runs in a thread: it may read and encode images."""
        here = self._loop()
        attempts: Attempts | None = None
        async with here.places:
            try:
                async with asyncio.timeout(self._deadline_s) as deadline:
                    call = await asyncio.to_thread(make)
                    attempts = Attempts(rendezvous(self._replicas, call.key), self._retries)
                    answer = await here.channel.exchange(call, attempts, deadline.when() or 0)
            except TimeoutError:
                before = f"; before that: {attempts.last}" if attempts and attempts.last else ""
                raise DeadlineExceeded(f"{path} was not answered within {self._deadline_s:g} s{before}") from None
        return answer

    def _loop(self) -> "_Loop":
        running = asyncio.get_running_loop()
        here = self._loops.get(running)
        if here is None:
            for known in self._loops.keyrefs():  # a list, since other threads open and drop theirs meanwhile
                loop = known()
                if loop is not None and loop.is_closed():
                    self._loops.pop(loop, None)  # its connections hold it, so it would stay for ever
            # The deadline bounds everything but connecting, where another replica may be quicker. What is gone without
            # a word is told from what is slow by TCP (keepalive.py).
            http = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {self._api_key}"} if self._api_key else {},
                timeout=httpx.Timeout(None, connect=CONNECT_S),
                limits=httpx.Limits(max_keepalive_connections=self._max_concurrency),
                transport=self._transport,
            )
            places = asyncio.Semaphore(self._max_concurrency)
            here = self._loops[running] = _Loop(Channel(http, self._attempt_s), places)
        return here

    def _check(self, fingerprint: str) -> None:
        if not self._pins:
            return
        pinned = self._pinned.setdefault(FIRST, fingerprint)
        if fingerprint != pinned:
            raise FingerprintMismatch(f"the service answered with {fingerprint[:12]}..., pinned is {pinned}")


class _Loop(NamedTuple):
    """What belongs to one event loop."""

    channel: Channel
    places: asyncio.Semaphore
