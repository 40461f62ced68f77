"""Two real service processes, one of which is killed in the middle of a batch and started again."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from beholder.client import AsyncRewardClient, RewardClient
from tests.pictures import png
from tests.system.programs import Replica, two_replicas

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
PICTURES = [png(colour=(number * 25, 80, 200)) for number in range(10)]
SAMPLES = [(f"Question {number % 20}?", [PICTURES[number % 10]], f"Answer {number}.") for number in range(400)]


@pytest.fixture
def replicas(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[list[Replica]]:
    with two_replicas(tiny_checkpoint, tmp_path, "{delay_s: 0.02}") as both:
        yield both


async def test_every_sample_is_scored_once_though_a_replica_is_killed_and_comes_back(replicas: list[Replica]) -> None:
    dying, staying = replicas
    done = 0

    async with AsyncRewardClient([dying.url, staying.url], deadline_s=60, max_concurrency=16) as client:

        async def score(sample: tuple[str, list[bytes], str]) -> float:
            nonlocal done
            result = await client.score(*sample)
            done += 1
            if done == 100:
                dying.close()
            if done == 250:
                dying.start()
            return result.score

        scores = await asyncio.gather(*(score(sample) for sample in SAMPLES))
    with RewardClient(staying.url) as alone:
        assert scores == [score.score for score in alone.score_many(SAMPLES)]
    assert dying.process.poll() is None
    assert '"/score"' in dying.log.read_text()
