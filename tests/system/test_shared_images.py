"""Two replicas with a shared image folder behind nginx, asked by image markers alone while one of them restarts.

Trainers that send only text put each image once and name it in every prompt: whichever replica answers must have it,
also one that was not there when the image came.
"""

import asyncio
import hashlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.pictures import png
from tests.system.programs import Replica, two_replicas
from tests.system.test_drain import HELPFUL, nginx

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(400)]
CLIENTS = 16
PICTURES = [png(colour=(number * 10, 80, 200 - number * 9)) for number in range(12)]


@dataclass
class Log:
    """Statuses of all answers, and the reward that each request got first; `wrong` counts those that differ later."""

    statuses: list[int] = field(default_factory=list)
    rewards: dict[int, float] = field(default_factory=dict)
    wrong: int = 0


def request(number: int) -> dict[str, Any]:
    """What OpenRLHF sends: strings."""
    name = hashlib.sha256(PICTURES[number]).hexdigest()
    prompt = f"<|im_start|>user\n<image:sha256:{name}>Which colour?<|im_end|>\n<|im_start|>assistant\n"
    return {"query": [f"{prompt}Red.<|im_end|>"], "prompts": [prompt], "labels": [None]}


async def ask(url: str, start: int, stop: asyncio.Event, log: Log) -> None:
    """One request after another, none of them a second time."""
    number = start
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        while not stop.is_set():
            number = (number + 1) % len(PICTURES)
            answer = await http.post("/trainers/openrlhf", json=request(number))
            log.statuses.append(answer.status_code)
            if answer.status_code == 200:
                (reward,) = answer.json()["rewards"]
                log.wrong += log.rewards.setdefault(number, reward) != reward


async def ask_while_one_restarts(url: str, replica: Replica) -> Log:
    log, stop = Log(), asyncio.Event()
    asking = [asyncio.ensure_future(ask(url, number, stop, log)) for number in range(CLIENTS)]
    try:
        await asyncio.sleep(2)
        replica.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(replica.process.wait, 60)
        assert status == 0, replica.log.read_text()
        replica.start()
        await asyncio.to_thread(replica.wait_ready)
        await asyncio.sleep(3)
    finally:
        stop.set()
        await asyncio.gather(*asking)
    return log


@pytest.fixture
def replicas(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[list[Replica]]:
    flags = ("--drain-delay-s", "1", "--drain-timeout-s", "20", "--image-store", str(tmp_path / "images"))
    with two_replicas(tiny_checkpoint, tmp_path, "{delay_s: 0.02}", *flags) as both:
        yield both


def test_no_marker_request_fails_while_a_replica_restarts(replicas: list[Replica], tmp_path: Path) -> None:
    with nginx(replicas, tmp_path, HELPFUL) as url:
        for picture in PICTURES:
            name = hashlib.sha256(picture).hexdigest()
            assert httpx.put(f"{url}/images/{name}", content=picture).status_code == 201
        log = asyncio.run(ask_while_one_restarts(url, replicas[0]))
    print(f"\n{len(log.statuses)} marker requests, {len(log.rewards)} images")
    assert set(log.statuses) == {200}
    assert len(log.statuses) > 100
    assert log.rewards.keys() == set(range(len(PICTURES)))
    assert len(set(log.rewards.values())) == len(PICTURES)
    assert not log.wrong
