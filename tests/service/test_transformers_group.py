"""The transformers engine takes many prompts at once; what is wrong with one is its own."""

from pathlib import Path

import pytest
from PIL import Image

from beholder.checkpoint import read_checkpoint
from beholder.engine import EngineScore, score_group
from beholder.engine.choosing import create_engine
from beholder.errors import PromptTooLong
from beholder.images import LoadedImage, load_image
from beholder.prompts import PromptRenderer, single_turn
from beholder.settings import load_settings
from tests.pictures import png

pytestmark = pytest.mark.anyio


async def test_a_bad_prompt_leaves_the_others_scored(tiny_checkpoint: Path) -> None:
    """One picture that the image processor refuses, one conversation that is too long."""
    settings = load_settings({"checkpoint": tiny_checkpoint, "engine": "transformers", "max_model_len": 256})
    engine = create_engine(settings, read_checkpoint(tiny_checkpoint))
    renderer = PromptRenderer.from_folder(tiny_checkpoint)
    good, refused = load_image(png(64, 64)), LoadedImage(Image.new("RGB", (2, 600)), "f" * 64)
    conversation = single_turn("Which colour?", 1)
    prompts = [
        renderer.render(conversation, "Red.", [good]),
        renderer.render(conversation, "Red.", [refused]),
        renderer.render(conversation, "Red. " * 300, [good]),
        renderer.render(conversation, "Blue.", [good]),
    ]
    await engine.start()
    try:
        first, second, third, fourth = await score_group(engine, prompts)
        alone = await engine.score(prompts[3])
    finally:
        await engine.stop()
    assert isinstance(first, EngineScore)
    assert isinstance(second, ValueError)
    assert isinstance(third, PromptTooLong)
    assert isinstance(fourth, EngineScore)
    assert fourth.logit == pytest.approx(alone.logit, abs=1e-5)
