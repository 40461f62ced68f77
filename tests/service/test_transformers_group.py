"""The transformers engine takes many prompts at once; what is wrong with one is its own."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from beholder.checkpoint import read_checkpoint
from beholder.engine import EngineScore, score_group
from beholder.engine.choosing import create_engine
from beholder.engine.queued_pictures import QueuedPictures
from beholder.engine.transformers import TransformersEngine, _Sample
from beholder.errors import EngineError, EngineUnavailable, ImageError, PromptTooLong
from beholder.images import LoadedImage, load_image
from beholder.modeling.inputs import Picture
from beholder.prompts import IMAGE, Prompt, PromptRenderer, Turn, single_turn
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
    assert isinstance(second, ImageError)
    assert "does not take the image: absolute aspect ratio must be smaller" in str(second)
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


async def test_processed_pictures_that_wait_are_bounded(
    engine: TransformersEngine, renderer: PromptRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than may wait: none are processed while some do, and all are scored."""
    monkeypatch.setattr(engine._encoding, "_most", 2)
    queued = engine._pictures = QueuedPictures(max_bytes=1)
    monkeypatch.setattr(engine._encoding, "_room", queued.room)
    held: list[int] = []
    encode = engine._encode

    def watched(groups: Sequence[Sequence[Prompt]]) -> list[list[_Sample | Exception]]:
        held.append(queued._bytes)
        return encode(groups)

    monkeypatch.setattr(engine._encoding, "_run", watched)
    shown = [load_image(png(64, 64 + number)) for number in range(12)]
    prompts = [renderer.render(single_turn("Which?", 1), "Red.", [image]) for image in shown]
    scores = await asyncio.gather(*map(engine.score, prompts))
    assert [score.logit for score in scores] == pytest.approx(
        [(await engine.score(p)).logit for p in prompts], abs=1e-5
    )
    assert held[:6] == [0] * 6
    assert queued._bytes == 0


async def test_a_picture_that_several_hold_counts_once() -> None:
    queued, picture = QueuedPictures(max_bytes=1), Picture({"pixel_values": torch.zeros(8)}, [1])
    with queued.holding([picture, picture]):
        with queued.holding([picture]):
            assert queued._bytes == picture.bytes == 32
        assert queued._bytes == 32
        waiting = asyncio.ensure_future(queued.room())
        await asyncio.sleep(0.01)
        assert not waiting.done()
    await waiting
    assert queued._bytes == 0


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


async def test_what_does_not_fit_in_memory_costs_no_other(
    engine: TransformersEngine, renderer: PromptRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = engine._forward

    def limited(rows: list[list[_Sample]]) -> list[EngineScore]:
        if max(len(sample.sequence) for row in rows for sample in row) > 100:
            raise torch.OutOfMemoryError
        return forward(rows)

    monkeypatch.setattr(engine, "_forward", limited)
    texts = ["fine", "much " * 30, "too"]
    small, large, other = await score_group(
        engine, [renderer.render(single_turn("Which one?", 0), text) for text in texts]
    )
    assert isinstance(small, EngineScore)
    assert isinstance(other, EngineScore)
    assert isinstance(large, EngineError)
    assert "does not fit" in str(large)


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
