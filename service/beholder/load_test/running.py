"""Send the requests of a mix: in a closed loop (so many at a time) or an open one (so many a second)."""

import asyncio
import gc
import hashlib
import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from beholder.client.base_urls import parse_base_url
from beholder.errors import BeholderError, ConfigurationError
from beholder.load_test.connection import ANSWER_S, Connection
from beholder.load_test.mix import Item, Mix, items

FAILED = 0
"""The status of a request that got no answer."""


@dataclass(frozen=True, slots=True)
class Load:
    """How requests are sent: `concurrency` at a time, or `rate` a second at random moments (Poisson), at most
    `concurrency` of which may wait for their answers. For `seconds`, or until `requests` are sent. What is not answered
    within `answer_s` seconds has failed."""

    concurrency: int = 32
    rate: float | None = None
    seconds: float | None = 30
    requests: int | None = None
    answer_s: float = ANSWER_S


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: its status (0 when it got no answer), latency in seconds from when it was due, and its answer."""

    item: Item
    status: int
    latency_s: float
    body: bytes


@dataclass
class Run:
    """`began` by time.perf_counter(); `cpu_s`: what this process took of a CPU; `late`: requests of an open loop that
    found `concurrency` waiting."""

    outcomes: list[Outcome] = field(default_factory=list)
    began: float = 0
    seconds: float = 0
    cpu_s: float = 0
    late: int = 0


async def run(url: str, mix: Mix, load: Load, *, api_key: str | None = None, progress: bool = True) -> Run:
    """Send `mix` under `load`. Pictures of references are sent ahead, out of the measured time.

    Raises ConfigurationError for a URL that is none, BeholderError when the service does not take the pictures.
    """
    requests = _requests(mix, load)
    await send_ahead(url, _pictures(mix, requests), api_key=api_key)
    return await send(url, requests, load, api_key=api_key, progress=progress)


async def send(
    url: str, requests: Iterable[Item], load: Load, *, api_key: str | None = None, progress: bool = True
) -> Run:
    """Send `requests` under `load`; the connections of an open loop are there before the clock starts.

    Raises ConfigurationError for a URL that is none, EngineUnavailable.
    """
    base = parse_base_url(url)
    connections = [Connection(base, api_key, load.answer_s) for _ in range(load.concurrency)]
    try:
        if load.rate is not None:
            await _open_all(connections)
        bar = tqdm(total=load.requests, unit="request", disable=not progress, desc="load test")
        with bar, _collector_at_rest():
            return await _Sender(connections, load, bar).run(iter(requests))
    finally:
        for connection in connections:
            connection.close()


async def send_ahead(url: str, pictures: Iterable[bytes], *, api_key: str | None = None) -> None:
    """Store pictures, for requests that refer to them. Raises ConfigurationError, EngineUnavailable."""
    async with Connection(parse_base_url(url), api_key) as connection:
        for image in pictures:
            status, body = await connection.request("PUT", f"/images/{hashlib.sha256(image).hexdigest()}", image)
            if status not in (200, 201):
                answer = body[:300].decode(errors="replace")
                raise ConfigurationError(f"the service does not take a picture ({status}): {answer}")


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Among the outcomes of a hundred thousand requests it takes half a second: a pause here, then a burst there."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _open_all(connections: Sequence[Connection]) -> None:
    """One after the other: thousands at once overflow the kernel's queue of a busy service, which drops them unseen."""
    for connection in connections:
        await connection.request("GET", "/livez", b"")


def _requests(mix: Mix, load: Load) -> "Sequence[Item] | Iterator[Item]":
    """Made before the clock starts where their number is known: making them takes CPU too."""
    endless = itertools.chain.from_iterable(items(mix, number) for number in itertools.count())
    return list(itertools.islice(endless, load.requests)) if load.requests else endless


def _pictures(mix: Mix, requests: "Sequence[Item] | Iterator[Item]") -> Iterable[bytes]:
    """What the requests refer to."""
    if mix.images != "reference":
        return ()
    if mix.unique_images and not isinstance(requests, Sequence):
        raise ConfigurationError("unique images by reference need a number of requests: they are sent ahead")
    known = requests if isinstance(requests, Sequence) else items(mix, 0)
    return dict.fromkeys(item.image for item in known if item.image is not None)


class _Sender:
    """One run: workers that take the next request from a shared source."""

    def __init__(self, connections: Sequence[Connection], load: Load, bar: "tqdm[Any]") -> None:
        self._idle: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for connection in connections:
            self._idle.put_nowait(connection)
        self._load = load
        self._bar = bar
        self._run = Run()

    async def run(self, source: Iterator[Item]) -> Run:
        started, cpu = time.perf_counter(), time.process_time()
        self._run.began = started
        end = started + self._load.seconds if self._load.seconds else float("inf")
        if self._load.rate is None:
            await asyncio.gather(*(self._closed(source, end) for _ in range(self._load.concurrency)))
        else:
            await self._open(source, end, self._load.rate)
        self._run.seconds = time.perf_counter() - started
        self._run.cpu_s = time.process_time() - cpu
        return self._run

    async def _closed(self, source: Iterator[Item], end: float) -> None:
        connection = await self._idle.get()
        while time.perf_counter() < end and (item := next(source, None)) is not None:
            await self._send(connection, item, time.perf_counter())

    async def _open(self, source: Iterator[Item], end: float, rate: float) -> None:
        rng, due = random.Random(0), time.perf_counter()
        async with asyncio.TaskGroup() as sending:
            for item in source:
                due += rng.expovariate(rate)
                if max(due, time.perf_counter()) > end:
                    return
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if self._idle.empty():
                    self._run.late += 1
                connection = await self._idle.get()
                sending.create_task(self._send_and_free(connection, item, due))

    async def _send_and_free(self, connection: Connection, item: Item, due: float) -> None:
        await self._send(connection, item, due)
        self._idle.put_nowait(connection)

    async def _send(self, connection: Connection, item: Item, due: float) -> None:
        try:
            status, body = await connection.request("POST", item.path, item.body)
        except BeholderError as error:
            status, body = FAILED, str(error).encode()
        self._run.outcomes.append(Outcome(item, status, time.perf_counter() - due, body))
        self._bar.update()
