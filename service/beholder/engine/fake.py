"""An engine without a model: the same prompt always gets the same score, after a delay, with faults on request.

For tests of everything around an engine, and for load. Never chosen by `engine: auto`.

engine_args: delay_s (each score), jitter_s (added, uniform), failure_rate (share of scores that raise EngineError),
die_after (scores after which the engine is dead), concurrency (scores computed at a time; 0 is no bound).
"""

import asyncio
import contextlib
import hashlib
import random
from typing import TYPE_CHECKING, Final

from beholder.checkpoint import Checkpoint
from beholder.engine import Activity, EngineScore
from beholder.errors import EngineError, EngineUnavailable, PromptTooLong
from beholder.prompts import Prompt

if TYPE_CHECKING:
    from beholder.settings import Settings

TOKENS_AN_IMAGE: Final = 64
SPREAD: Final = 5.0  # scores are uniform in ±SPREAD


class FakeEngine:
    """See `beholder.engine.Engine`."""

    def __init__(self, settings: "Settings", checkpoint: Checkpoint) -> None:
        arguments = settings.engine_args
        self._max_tokens = settings.max_model_len
        self._delay_s = float(arguments.get("delay_s", 0))
        self._jitter_s = float(arguments.get("jitter_s", 0))
        self._failure_rate = float(arguments.get("failure_rate", 0))
        self._remaining = arguments.get("die_after")
        concurrency = int(arguments.get("concurrency", 0))
        self._slots: contextlib.AbstractAsyncContextManager[object] = (
            asyncio.Semaphore(concurrency) if concurrency else contextlib.nullcontext()
        )
        self._random = random.Random(0)
        self._running = False
        self.activity = Activity()

    async def start(self) -> None:
        self._running = True

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    @property
    def healthy(self) -> bool:
        return self._running

    async def score(self, prompt: Prompt, *, fresh: bool = False) -> EngineScore:
        tokens = len(prompt.token_ids) + TOKENS_AN_IMAGE * len(prompt.images)
        if tokens > self._max_tokens:
            raise PromptTooLong(
                f"the conversation has {tokens} tokens, at most {self._max_tokens} are accepted",
                tokens,
                self._max_tokens,
            )
        self._count_down()
        await self._wait()
        if not self._running:
            raise EngineUnavailable("the engine died")
        if self._random.random() < self._failure_rate:
            raise EngineError("the fake engine failed, as it was told to")
        return EngineScore(fake_score(prompt), tokens, 0)

    async def stop(self) -> None:
        self._running = False

    async def _wait(self) -> None:
        async with self._slots:
            self.activity.on_batch(1)
            self.activity.running += 1
            try:
                await asyncio.sleep(self._delay_s + self._jitter_s * self._random.random())
            finally:
                self.activity.running -= 1

    def _count_down(self) -> None:
        if self._remaining is not None:
            self._remaining -= 1
            self._running = self._running and self._remaining >= 0
        if not self._running:
            raise EngineUnavailable("the engine is not running")


def fake_score(prompt: Prompt) -> float:
    """A number in ±SPREAD from the sha256 of the prompt's ids and images."""
    text = repr((prompt.token_ids, [image.sha256 for image in prompt.images]))
    digest = hashlib.sha256(text.encode()).digest()
    return SPREAD * (int.from_bytes(digest[:8]) / 2**63 - 1)
