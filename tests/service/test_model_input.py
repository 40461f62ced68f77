"""A model is shown what it was trained on, whatever a request holds: the wiring, over a stand-in engine."""

from pathlib import Path
from typing import Any

import pytest

from beholder import openapi_examples as examples
from beholder.checkpoint import Checkpoint, read_checkpoint
from beholder.images import LoadedImage, blank_image
from beholder.prompts import ModelInput, PromptRenderer
from beholder.settings import Settings
from tests.conftest import untrained
from tests.service.stand_in import StandInEngine, serving

pytestmark = pytest.mark.anyio
IMAGE = {"images": [examples.RED_SQUARE]}
MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it?"}]}]


Served = tuple[StandInEngine, Checkpoint, PromptRenderer]


@pytest.fixture
def text_only(tiny_base: Path, world: Path, tmp_path: Path) -> Served:
    return trained_on("text", tiny_base, world, tmp_path)


@pytest.fixture
def blank(tiny_base: Path, world: Path, tmp_path: Path) -> Served:
    return trained_on("blank_image", tiny_base, world, tmp_path)


def trained_on(model_input: ModelInput, base: Path, world: Path, folder: Path) -> Served:
    """A checkpoint of a model with this input, as training exports it, and a stand-in for its engine."""
    from beholder_training.data import read_records
    from beholder_training.export import export

    branch = untrained(base, seed=0)
    branch.sees_images, branch.blank_images = model_input != "text", model_input == "blank_image"
    held_out = read_records([world / "length" / "responses.jsonl"])[:4]
    export(branch, folder / "rm", held_out, base_model="tiny", algorithm="standard", data_fingerprint="0" * 64)
    checkpoint = read_checkpoint(folder / "rm")
    renderer = checkpoint.renderer()
    return StandInEngine.passing_golden(checkpoint, renderer), checkpoint, renderer


async def test_a_text_only_model_takes_the_same_requests_and_leaves_the_images_out(
    settings: Settings, text_only: Served
) -> None:
    async with serving(settings, *text_only) as client:

        async def score(**body: Any) -> Any:
            return (await client.post("/score", json={"response": "Yes.", **body})).json()

        assert (await client.get("/models")).json()["models"][0]["input"] == "text"
        expected = (await score(prompt="Is it?"))["scores"]
        assert (await score(prompt="Is it?", **IMAGE))["scores"] == expected
        assert (await score(messages=MESSAGES, **IMAGE))["scores"] == expected
        assert (await score(messages=MESSAGES))["code"] == "image-mismatch"
        assert (await score(prompt="Is it?", images=["AAAA"]))["code"] == "invalid-image"
        alone = [{"role": "user", "content": [{"type": "image"}]}]
        assert len((await score(messages=alone, **IMAGE))["scores"]) == 1


async def test_its_prompts_are_cut_too(settings: Settings, text_only: Served) -> None:
    text_only[0].max_tokens = 300
    chosen = settings.model_copy(update={"overlong": "truncate"})
    async with serving(chosen, *text_only) as client:
        body = {"prompt": "word " * 1000, "response": "r", **IMAGE}
        answer = (await client.post("/score", json=body)).json()
        assert answer["truncated"] == [True]


async def test_a_model_trained_on_blank_images_is_shown_one_for_each(settings: Settings, blank: Served) -> None:
    engine = blank[0]
    async with serving(settings, *blank) as client:
        engine.images_seen.clear()
        await client.post("/score", json={"prompt": "Is it?", "response": "r", **IMAGE})
        (seen,) = engine.images_seen
        assert isinstance(seen, LoadedImage)
        assert seen.sha256 == blank_image().sha256
        assert seen.pixels.getcolors() == [(224 * 224, (255, 255, 255))]
