"""What scores: a small protocol, so that the service runs on any engine and its tests on none."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from beholder.prompts import Prompt


@dataclass(frozen=True, slots=True)
class EngineScore:
    """`logit` is the raw output of the head; `cached_tokens` of the `prompt_tokens` were not computed again.

    `from_cache`: the score was known and nothing was computed (an engine that wraps another with a cache says so);
    `truncated`: the conversation was shortened before.
    """

    logit: float
    prompt_tokens: int
    cached_tokens: int
    from_cache: bool = False
    truncated: bool = False


@dataclass(slots=True)
class Activity:
    """What an engine does now, written by it and read by metrics; `on_batch` is called with each batch's samples."""

    running: int = 0
    waiting: int = 0
    on_batch: Callable[[int], object] = lambda samples: None


class Engine(Protocol):
    """One loaded checkpoint. `score` may be called concurrently; batching is the engine's affair."""

    @property
    def activity(self) -> Activity: ...

    async def start(self) -> None:
        """Load the checkpoint. Returns when `score` may be called; must not block the event loop."""

    async def score(self, prompt: Prompt, *, fresh: bool = False) -> EngineScore:
        """Score one prompt; `fresh` computes everything anew, past every cache.

        Raises InvalidRequest for a prompt that it cannot score, EngineError otherwise.
        """

    @property
    def max_tokens(self) -> int:
        """The longest prompt that is scored, images expanded; exact once `start` has returned."""

    @property
    def healthy(self) -> bool:
        """False before `start` has returned and for good once the engine died."""

    async def stop(self) -> None:
        """Free everything; called once nothing is in flight, or after the engine died."""


@runtime_checkable
class GroupEngine(Protocol):
    """An engine that takes many prompts at less cost than one by one."""

    async def score_group(self, prompts: Sequence[Prompt]) -> list[EngineScore | BaseException]:
        """Each prompt's score, in order, or what `score` would raise for it."""


async def score_group(engine: Engine, prompts: Sequence[Prompt]) -> list[EngineScore | BaseException]:
    """`GroupEngine.score_group`, of any engine."""
    if isinstance(engine, GroupEngine):
        return await engine.score_group(prompts)
    return await asyncio.gather(*map(engine.score, prompts), return_exceptions=True)
