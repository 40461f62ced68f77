"""The transformers engine takes many prompts at once; what is wrong with one is its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from beholder.checkpoint import read_checkpoint
from beholder.engine import EngineScore, score_group
from beholder.engine.choosing import create_engine
from beholder.engine.transformers import TransformersEngine
from beholder.errors import EngineError, EngineUnavailable, PromptTooLong
from beholder.images import LoadedImage, load_image
from beholder.prompts import IMAGE, PromptRenderer, Turn, single_turn
from beholder.settings import load_settings
from tests.pictures import png

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine(tiny_checkpoint: Path) -> AsyncIterator[TransformersEngine]:
    settings = load_settings({"checkpoint": tiny_checkpoint, "engine": "transformers", "max_model_len": 256})
    engine = create_engine(settings, read_checkpoint(tiny_checkpoint))
    assert isinstance(engine, TransformersEngine)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def renderer(tiny_checkpoint: Path) -> PromptRenderer:
    return PromptRenderer.from_folder(tiny_checkpoint)


async def test_a_bad_prompt_leaves_the_others_scored(engine: TransformersEngine, renderer: PromptRenderer) -> None:
    """One picture that the image processor refuses, one conversation that is too long."""
    good, refused = load_image(png(64, 64)), LoadedImage(Image.new("RGB", (2, 600)), "f" * 64)
    conversation = single_turn("Which colour?", 1)
    prompts = [
        renderer.render(conversation, "Red.", [good]),
        renderer.render(conversation, "Red.", [refused]),
        renderer.render(conversation, "Red. " * 300, [good]),
        renderer.render(conversation, "Blue.", [good]),
    ]
    first, second, third, fourth = await score_group(engine, prompts)
    alone = await engine.score(prompts[3])
    assert isinstance(first, EngineScore)
    assert isinstance(second, ValueError)
    assert isinstance(third, PromptTooLong)
    assert isinstance(fourth, EngineScore)
    assert fourth.logit == pytest.approx(alone.logit, abs=1e-5)


async def test_pictures_behind_what_is_shared_score_as_alone(
    engine: TransformersEngine, renderer: PromptRenderer
) -> None:
    shown = load_image(png(64, 64))
    prompts = [
        renderer.render((Turn("user", parts),), "It is red.", [shown] * parts.count(IMAGE))
        for question in ("Which colour is it?", "How many are there?")
        for parts in ((f"Look closely, then answer. {question}", IMAGE), (IMAGE, question, IMAGE))
    ]
    alone = [(await engine.score(prompt)).logit for prompt in prompts]
    together = await score_group(engine, prompts)
    assert [score.logit for score in together if isinstance(score, EngineScore)] == pytest.approx(alone, abs=1e-5)


async def test_a_reward_that_is_not_finite_is_its_own_samples_error(
    engine: TransformersEngine, renderer: PromptRenderer
) -> None:
    bad = renderer.render(single_turn("Which one?", 0), "zebra ~")
    good = [renderer.render(single_turn(f"Which one of {number}?", 0), "fine") for number in range(4)]
    known = {token_id for prompt in good for token_id in prompt.token_ids}
    broken = next(token_id for token_id in reversed(bad.token_ids) if token_id not in known)
    with torch.inference_mode():
        engine._model.backbone.get_input_embeddings().weight[broken] = float("nan")
    first, *others = await score_group(engine, [bad, *good])
    assert isinstance(first, EngineError)
    assert all(isinstance(score, EngineScore) for score in others)


async def test_an_accelerator_that_failed_is_an_engine_that_died(
    engine: TransformersEngine, renderer: PromptRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA error stays with the process: all that follows fails, so it must end."""

    def fail(*_: object) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    assert engine.healthy
    monkeypatch.setattr(engine, "_forward", fail)
    with pytest.raises(EngineUnavailable, match="illegal memory access"):
        await engine.score(renderer.render(single_turn("Which one?", 0), "fine"))
    assert not engine.healthy
