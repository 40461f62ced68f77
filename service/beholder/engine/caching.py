"""An engine that remembers: the score of a conversation, a response and its images is computed once.

A rollout that is sent again gets the identical score, and identical samples in flight share one computation. Scores are
keyed by all that the model reads: the token ids and the images' sha256. The checkpoint is the engine's, so it needs no
place in the key.
"""

import asyncio
import hashlib
from array import array
from dataclasses import dataclass, replace
from typing import Final

from beholder.engine import Activity, Engine, EngineScore
from beholder.lru import ByteBoundedCache
from beholder.metrics import Metrics
from beholder.prompts import Prompt

ENTRY_BYTES: Final = 400
"""What an entry takes in memory: a key of 32 bytes, a score, and Python's objects around them (measured: 390)."""


@dataclass
class _Computation:
    """One sample in flight and how many wait for it."""

    task: "asyncio.Task[EngineScore]"
    waiting: int = 0


class CachingEngine:
    """See `beholder.engine.Engine`; wraps another one. `max_bytes` bounds what it remembers."""

    def __init__(self, engine: Engine, max_bytes: int, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._scores: ByteBoundedCache[bytes, EngineScore] = ByteBoundedCache(max_bytes)
        self._in_flight: dict[bytes, _Computation] = {}

    @property
    def activity(self) -> Activity:
        return self._engine.activity

    async def start(self) -> None:
        await self._engine.start()

    async def stop(self) -> None:
        await self._engine.stop()

    @property
    def max_tokens(self) -> int:
        return self._engine.max_tokens

    @property
    def healthy(self) -> bool:
        return self._engine.healthy

    async def score(self, prompt: Prompt, *, fresh: bool = False) -> EngineScore:
        if fresh:
            return await self._engine.score(prompt, fresh=True)
        key = _key(prompt)
        known = self._scores.get(key)
        if known is not None:
            self._metrics.score_cache.labels("hit").inc()
            return known
        if key in self._in_flight:
            self._metrics.score_cache.labels("joined").inc()
            return _from_cache(await self._wait(key, self._in_flight[key]))
        self._metrics.score_cache.labels("miss").inc()
        return await self._wait(key, self._compute(key, prompt))

    def _compute(self, key: bytes, prompt: Prompt) -> _Computation:
        task = asyncio.ensure_future(self._engine.score(prompt))
        computation = self._in_flight[key] = _Computation(task)
        task.add_done_callback(lambda done: self._finish(key, done))
        return computation

    async def _wait(self, key: bytes, computation: _Computation) -> EngineScore:
        """The last one that waits takes the computation with it when it is cancelled."""
        computation.waiting += 1
        try:
            return await asyncio.shield(computation.task)
        finally:
            computation.waiting -= 1
            if not computation.waiting and not computation.task.done():
                # From now on nobody may join it.
                self._forget(key, computation.task)
                computation.task.cancel()
                await asyncio.gather(computation.task, return_exceptions=True)
            del computation  # its error's traceback holds this frame: a cycle

    def _finish(self, key: bytes, task: "asyncio.Task[EngineScore]") -> None:
        self._forget(key, task)
        if not task.cancelled() and task.exception() is None:
            self._scores.put(key, _from_cache(task.result()), ENTRY_BYTES)

    def _forget(self, key: bytes, task: "asyncio.Task[EngineScore]") -> None:
        computation = self._in_flight.get(key)
        if computation is not None and computation.task is task:
            del self._in_flight[key]


def _key(prompt: Prompt) -> bytes:
    digest = hashlib.blake2b(array("q", prompt.token_ids).tobytes(), digest_size=32)
    for image in prompt.images:
        digest.update(bytes.fromhex(image.sha256))
    return digest.digest()


def _from_cache(score: EngineScore) -> EngineScore:
    """Nothing was computed for it."""
    return replace(score, from_cache=True, cached_tokens=score.prompt_tokens)
