"""A client that is pickled or copied: the same arguments and pin, and nothing of the connections."""

import asyncio
import copy
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from operator import methodcaller
from typing import Any

import httpx
import pytest

from beholder.checkpoint import Checkpoint
from beholder.client import AsyncRewardClient, RewardClient, Sample
from beholder.engine.fake import FakeEngine
from beholder.errors import FingerprintMismatch
from beholder.prompts import PromptRenderer
from beholder.settings import Settings, load_settings
from beholder.trainers import trl
from beholder.trainers.ms_swift import BeholderORM
from beholder.trainers.rewards import Rewarder, RewardSettings
from tests.pictures import png
from tests.service.serving import served

KINDS = [RewardClient, AsyncRewardClient]
SCORE = methodcaller("score", "Colour?", [png()], "Red.")


class Transport(httpx.AsyncBaseTransport):
    """A service in whose copies another checkpoint answers."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.keys: list[str | None] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Transport, ("another",)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.keys.append(request.headers.get("authorization"))
        body = {"scores": [1.0], "fingerprint": self.fingerprint, "usage": {"prompt_tokens": 1, "cached_tokens": 0}}
        return httpx.Response(200, json=body)


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def cloudpickled(thing: Any) -> Any:
    cloudpickle = pytest.importorskip("cloudpickle")  # Ray's
    return pickle.loads(cloudpickle.dumps(thing))


def ask(client: Any) -> Any:
    answer = client.score("p", [], "r")
    return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer


@pytest.fixture
def url(settings: Settings, checkpoint: Checkpoint, renderer: PromptRenderer) -> Iterator[str]:
    faking = load_settings({"checkpoint": settings.checkpoint, "drain_delay_s": 0, "engine": "fake"})
    with served(faking, FakeEngine(faking, checkpoint), checkpoint, renderer) as url:
        yield url


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicate", [pickled, cloudpickled, copy.copy, copy.deepcopy])
def test_the_copy_has_the_same_arguments(kind: Any, duplicate: Callable[[Any], Any]) -> None:
    urls = ["http://x:key@one", "http://two"]
    options = {
        "api_key": "s3cret",
        "fingerprint": "f" * 64,
        "model": "proxy",
        "deadline_s": 12.5,
        "attempt_s": 3.0,
        "max_concurrency": 7,
        "retries": 2,
        "transport": None,
    }
    made, (given,) = duplicate(kind(urls, **options)).__reduce__()
    assert (made.func, made.keywords, given) == (kind, options, tuple(urls))


@pytest.mark.parametrize("kind", KINDS)
def test_the_copy_keeps_to_the_checkpoint_that_answered_first(kind: Any) -> None:
    client = kind("http://t", fingerprint="first", api_key="s3cret", transport=Transport("f"))
    not_yet = pickled(client)
    ask(client)
    assert ask(not_yet).fingerprint == "another"
    with pytest.raises(FingerprintMismatch, match="pinned is f"):
        ask(pickled(client))


def test_closing_a_copy_leaves_the_client_open(url: str) -> None:
    with RewardClient(url) as client:
        score = SCORE(client).score
        with copy.copy(client) as other:
            assert SCORE(other).score == score
        assert SCORE(client).score == score


@pytest.mark.parametrize("kind", KINDS)
def test_a_transport_that_cannot_be_pickled_says_so(kind: Any) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200))
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(kind("http://t", transport=transport))


def rewarder(settings: RewardSettings) -> Rewarder:
    return Rewarder(settings)


def orm(settings: RewardSettings) -> BeholderORM:
    return BeholderORM(rewarder=Rewarder(settings))


@pytest.mark.parametrize(
    ("make", "reward"),
    [
        (rewarder, methodcaller("rewards", [Sample("p", [], "r")])),
        (trl.reward_function, methodcaller("__call__", ["p"], ["r"])),
        (orm, methodcaller("__call__", ["r"], messages=[[{"role": "user", "content": "p"}]])),
    ],
)
def test_what_trainers_pickle_keeps_its_pin(make: Any, reward: Any) -> None:
    function = make(RewardSettings(("http://t",), fingerprint="first", transport=Transport("f")))
    assert reward(function) == [1.0]
    with pytest.raises(FingerprintMismatch, match="pinned is f"):
        reward(pickled(function))


def test_a_worker_process_scores_with_the_client_that_it_is_sent(url: str) -> None:
    with RewardClient(url, fingerprint="first") as client:
        score = SCORE(client).score
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            assert pool.submit(SCORE, client).result(60).score == score
