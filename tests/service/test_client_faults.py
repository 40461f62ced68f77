"""Through a proxy that misbehaves: every sample has its one right score or a clear error, and nothing hangs."""

import asyncio
import random
import time
from collections.abc import Iterator

import pytest

from beholder.checkpoint import Checkpoint
from beholder.client import AsyncRewardClient, RewardClient, Score, attempts
from beholder.client.replicas import open_replicas, rendezvous
from beholder.client.requests import make_call
from beholder.engine.fake import FakeEngine
from beholder.errors import BeholderError, DeadlineExceeded, EngineUnavailable, Overloaded
from beholder.prompts import PromptRenderer
from beholder.settings import Settings, load_settings
from tests.pictures import png
from tests.service.misbehaving import Fault, misbehaving
from tests.service.serving import served
from tests.service.stand_in import until

pytestmark = pytest.mark.anyio
PICTURES = [png(colour=(number * 40, 90, 200)) for number in range(4)]
SAMPLES = [(f"Question {number % 8}?", [PICTURES[number % 4]], f"Answer {number}.") for number in range(120)]
DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FIRST_WAIT_S", 0.02)


@pytest.fixture
def upstream(settings: Settings, checkpoint: Checkpoint, renderer: PromptRenderer) -> Iterator[str]:
    faking = load_settings({"checkpoint": settings.checkpoint, "drain_delay_s": 0, "engine": "fake"})
    with served(faking, FakeEngine(faking, checkpoint), checkpoint, renderer) as url:
        yield url


@pytest.fixture
def expected(upstream: str) -> list[float]:
    with RewardClient(upstream) as client:
        return [score.score for score in client.score_many(SAMPLES)]


def sometimes(*faults: Fault, share: float = 0.4, seed: int = 0) -> Iterator[Fault]:
    rng = random.Random(seed)
    while True:
        yield rng.choice(faults) if rng.random() < share else "none"


@pytest.mark.parametrize("fault", ["delay", "reset", "truncate", "503", "html-502"])
async def test_what_passes_is_retried_until_every_sample_is_scored(
    upstream: str, expected: list[float], fault: Fault
) -> None:
    faults = sometimes(fault)
    async with (
        misbehaving(upstream, lambda number: next(faults)) as proxy,
        AsyncRewardClient(proxy.url, deadline_s=DEADLINE_S) as client,
    ):
        scores = await client.score_many(SAMPLES)
        assert proxy.faults[fault] > 20
    assert [score.score for score in scores] == expected


async def test_a_burst_of_503_is_waited_out(upstream: str, expected: list[float]) -> None:
    async with (
        misbehaving(upstream, lambda number: "503" if 10 <= number < 80 else "none") as proxy,
        AsyncRewardClient(proxy.url, deadline_s=DEADLINE_S) as client,
    ):
        scores = await client.score_many(SAMPLES)
    assert [score.score for score in scores] == expected


async def test_a_500_is_an_error_of_its_own_sample_alone(upstream: str, expected: list[float]) -> None:
    faults = sometimes("500", share=0.2)
    async with (
        misbehaving(upstream, lambda number: next(faults)) as proxy,
        AsyncRewardClient(proxy.url, deadline_s=DEADLINE_S) as client,
    ):
        results = await client.try_score_many(SAMPLES)
        failed = [result for result in results if isinstance(result, BeholderError)]
        assert len(failed) == proxy.faults["500"] > 10
    for result, right in zip(results, expected, strict=True):
        assert not isinstance(result, Score) or result.score == right


async def test_everything_at_once_over_two_replicas_of_which_one_dies(upstream: str, expected: list[float]) -> None:
    faults = sometimes("delay", "reset", "truncate", "503", "html-502", share=0.3)
    async with (
        misbehaving(upstream, lambda number: next(faults)) as one,
        misbehaving(upstream, lambda number: next(faults)) as two,
        AsyncRewardClient([one.url, two.url], deadline_s=DEADLINE_S, max_concurrency=8) as client,
    ):
        scoring = asyncio.ensure_future(client.score_many(SAMPLES))
        await until(lambda: one.posts >= 20)
        one.kill()
        before = two.posts
        scores = await scoring
        assert two.posts > before
    assert [score.score for score in scores] == expected


@pytest.mark.parametrize("fault", ["drip", "503", "reset"])
async def test_nothing_outlasts_its_deadline(upstream: str, fault: Fault) -> None:
    """An answer that comes byte by byte keeps every read of the socket happy."""
    async with (
        misbehaving(upstream, lambda number: fault) as proxy,
        AsyncRewardClient(proxy.url, deadline_s=0.5, retries=1000) as client,
    ):
        started = time.monotonic()
        with pytest.raises((DeadlineExceeded, EngineUnavailable, Overloaded)):
            await client.score("p", PICTURES[:1], "r")
        assert time.monotonic() - started < 5


async def test_a_replica_that_hangs_costs_one_attempt_where_attempts_are_bounded(upstream: str) -> None:
    async with (
        misbehaving(upstream, lambda number: "drip") as slow,
        misbehaving(upstream, lambda number: "none") as good,
        AsyncRewardClient([slow.url, good.url], attempt_s=0.3, deadline_s=DEADLINE_S) as client,
    ):
        await client.score_many([(f"p{number}", [], "r") for number in range(10)])
        assert good.posts == 10
        assert 1 <= slow.posts <= 10


async def test_an_image_on_its_way_to_a_replica_that_hangs_costs_all_who_wait_for_it_one_attempt(upstream: str) -> None:
    async with (
        misbehaving(upstream, lambda number: "drip") as slow,
        misbehaving(upstream, lambda number: "none") as good,
        AsyncRewardClient([slow.url, good.url], attempt_s=0.5, deadline_s=DEADLINE_S) as client,
    ):
        prompt = question_for(slow.url, [slow.url, good.url])
        started = time.monotonic()
        scores = await client.score_many([(prompt, PICTURES[:1], f"Answer {number}.") for number in range(32)])
        assert time.monotonic() - started < 5  # one after the other the attempts would take 16 s
        assert (slow.puts, slow.posts) == (1, 0)
        assert (good.puts, good.posts) == (1, 32)
    assert len({score.score for score in scores}) > 1


def question_for(url: str, urls: list[str]) -> str:
    """One that is asked of `url` first, with the first picture."""
    calls = (
        (f"Question {number}?", make_call("/score", f"Question {number}?", PICTURES[:1], {})) for number in range(99)
    )
    return next(prompt for prompt, call in calls if rendezvous(open_replicas(urls), call.key)[0].name == url)
