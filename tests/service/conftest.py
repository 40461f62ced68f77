"""Fixtures of the service's tests.

`tiny_checkpoint` (tests/conftest.py) is a folder with a tiny reward model. Tests of the HTTP wiring run a stand-in
engine on it, tests of the engine and of the process run vLLM.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from beholder.checkpoint import Checkpoint, read_checkpoint
from beholder.prompts import PromptRenderer
from beholder.settings import Settings, load_settings
from tests.service.asked import Recorder
from tests.service.stand_in import Serve, StandInEngine, serving


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return read_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="session")
def renderer(tiny_checkpoint: Path) -> PromptRenderer:
    return PromptRenderer.from_folder(tiny_checkpoint)


@pytest.fixture(scope="module")
def engine_settings(tiny_checkpoint: Path) -> Settings:
    """A vLLM of short prompts and little memory."""
    return load_settings(
        {
            "checkpoint": tiny_checkpoint,
            "max_model_len": 1024,
            "max_images": 2,
            "engine_args": {"num_gpu_blocks_override": 512},
        }
    )


@pytest.fixture
def settings(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Without a score cache, so that every request reaches the engine; tests/service/test_score_cache.py has one."""
    monkeypatch.delenv("BEHOLDER_CHECKPOINT", raising=False)
    return load_settings({"checkpoint": tiny_checkpoint, "drain_delay_s": 0, "score_cache_bytes": 0})


@pytest.fixture
def engine(checkpoint: Checkpoint, renderer: PromptRenderer) -> Iterator[StandInEngine]:
    engine = StandInEngine.passing_golden(checkpoint, renderer)
    yield engine
    assert engine.active == 0, "scores were left running"


@pytest.fixture
def serve(settings: Settings, engine: StandInEngine, checkpoint: Checkpoint, renderer: PromptRenderer) -> Serve:
    return lambda **changes: serving(settings.model_copy(update=changes), engine, checkpoint, renderer)


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    """Of a service with the stand-in engine."""
    async with serve() as client:
        yield client


@pytest.fixture(scope="session")
def golden_image(tiny_checkpoint: Path) -> Path:
    """Some picture."""
    return next(path for path in sorted((tiny_checkpoint / "golden").iterdir()) if path.suffix in (".png", ".jpg"))


@pytest.fixture
def service() -> Recorder:
    """For the trainers' functions, which know no more of a service than what they are answered."""
    return Recorder()
