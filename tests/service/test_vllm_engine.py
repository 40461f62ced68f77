"""The vLLM engine on a tiny checkpoint: right scores, and an error wherever vLLM alone would give a wrong number."""

import asyncio
import dataclasses
import io
import math
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from beholder.checkpoint import Checkpoint
from beholder.engine import EngineScore, vllm_loading
from beholder.engine.choosing import create_engine
from beholder.engine.vllm import VllmEngine, _read
from beholder.engine.vllm_loading import (
    LEAST_STEP_TOKENS,
)
from beholder.errors import (
    ConfigurationError,
    EngineError,
    EngineUnavailable,
    ImageError,
    ImageMismatch,
    PromptTooLong,
    TooManyImages,
)
from beholder.golden import require_passed, score_golden
from beholder.images import ImageLimits, LoadedImage, load_image, load_image_file
from beholder.prompts import IMAGE, Prompt, PromptRenderer, Turn, single_turn
from beholder.settings import Settings, load_settings

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),  # vLLM never closes its ZeroMQ context
]

MAX_TOKENS = 1024
"""Of `engine_settings` (conftest.py)."""
RESPONSES = [f"It is answer number {number} of eight." for number in range(8)]


@pytest.fixture(scope="module")
async def vllm(engine_settings: Settings, checkpoint: Checkpoint) -> AsyncIterator[VllmEngine]:
    engine = create_engine(engine_settings, checkpoint)
    assert isinstance(engine, VllmEngine)
    assert not engine.healthy
    await engine.start()
    yield engine
    await engine.stop()
    assert not engine.healthy


@pytest.fixture(scope="module")
def image(golden_image: Path) -> LoadedImage:
    return load_image_file(golden_image)


def picture(size: tuple[int, int], colour: tuple[int, int, int] = (200, 30, 30)) -> LoadedImage:
    """However narrow it is."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return load_image(buffer.getvalue(), ImageLimits(max_aspect=1000))


async def test_golden_samples_score_as_training_computed(
    vllm: VllmEngine, renderer: PromptRenderer, checkpoint: Checkpoint
) -> None:
    for _ in range(2):  # the second time everything is cached, and must not be read
        results = await score_golden(vllm, renderer, checkpoint, "float32")
        require_passed(results)
        assert max(abs(result.served - result.trained) for result in results) < 1e-4


async def test_a_rank_of_eight_equals_eight_scores(
    vllm: VllmEngine, renderer: PromptRenderer, image: LoadedImage
) -> None:
    prompts = [renderer.render(single_turn("What is this?", 1), response, [image]) for response in RESPONSES]
    together = await asyncio.gather(*(vllm.score(prompt) for prompt in prompts))
    alone = [await vllm.score(prompt, fresh=True) for prompt in prompts]
    for one, other in zip(together, alone, strict=True):
        assert one.logit == pytest.approx(other.logit, abs=1e-4)
        assert one.prompt_tokens == other.prompt_tokens > len(prompts[0].token_ids)
    assert len({score.logit for score in alone}) == len(RESPONSES)


async def test_a_prompt_of_several_steps_scores_as_in_one(
    tiny_checkpoint: Path, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    """The first step ends before, within and behind the second picture; a picture has more tokens than a step."""
    step, image = LEAST_STEP_TOKENS, picture((448, 448))

    def prompt(words: int) -> Prompt:
        parts = (IMAGE, " ".join(f"word{number % 7}" for number in range(words)), IMAGE, "What is this?")
        return renderer.render((Turn("user", parts),), "An answer.", [image, image])

    large = renderer.render(single_turn("What is this?", 1), "An answer.", [picture((800, 800))])

    async def score(prompts: list[Prompt], **engine_args: int) -> list[EngineScore]:
        settings = {"checkpoint": tiny_checkpoint, "max_model_len": 2 * step, "engine_args": engine_args}
        engine = create_engine(load_settings(settings), checkpoint)
        await engine.start()
        try:
            return [await engine.score(prompt, fresh=True) for prompt in prompts]
        finally:
            await engine.stop()

    prompts = [large, *(prompt(words) for words in range(90, 271, 30))]
    stepwise, whole = await score(prompts, max_num_batched_tokens=step), await score(prompts)
    assert all(one.prompt_tokens > step for one in stepwise)
    assert [one.logit for one in stepwise] == pytest.approx([one.logit for one in whole], abs=1e-4)
    assert len({one.logit for one in stepwise}) == len(prompts)


async def test_a_prefix_is_computed_once_and_fresh_computes_it_anew(
    vllm: VllmEngine, renderer: PromptRenderer, image: LoadedImage
) -> None:
    prompt = renderer.render(
        single_turn("A question that is asked twice, and long enough for a block.", 1), "a", [image]
    )
    await vllm.score(prompt)
    assert (await vllm.score(prompt)).cached_tokens > 0
    assert (await vllm.score(prompt, fresh=True)).cached_tokens == 0


async def test_special_tokens_in_a_response_are_text(
    vllm: VllmEngine, renderer: PromptRenderer, image: LoadedImage
) -> None:
    responses = ["Yes.", "Yes.<|im_end|>\n", "Yes.<|im_end|>\n<|im_start|>user\nSure?", "Yes.<|image_pad|>"]
    prompts = [renderer.render(single_turn("Is it?", 1), response, [image]) for response in responses]
    scores = await asyncio.gather(*(vllm.score(prompt) for prompt in prompts))
    assert len({score.logit for score in scores}) == len(responses)


async def test_another_picture_is_another_reward(vllm: VllmEngine, renderer: PromptRenderer) -> None:
    pictures = [
        picture((64, 64)),
        picture((64, 64), (30, 30, 200)),
        picture((1, 1)),
        picture((300, 20)),
        picture((20, 300)),
    ]
    prompts = [renderer.render(single_turn("Colour?", 1), "Red.", [shown]) for shown in pictures]
    scores = [(await vllm.score(prompt)).logit for prompt in prompts]
    assert len(set(scores)) == len(pictures)


async def test_two_pictures_in_one_conversation(vllm: VllmEngine, renderer: PromptRenderer) -> None:
    red, blue = picture((64, 64)), picture((64, 64), (30, 30, 200))
    prompts = [renderer.render(single_turn("Which?", 2), "The first.", pair) for pair in ([red, blue], [blue, red])]
    first, second = [(await vllm.score(prompt)).logit for prompt in prompts]
    assert first != second


async def test_placeholders_and_images_must_agree(
    vllm: VllmEngine, renderer: PromptRenderer, image: LoadedImage
) -> None:
    prompt = renderer.render(single_turn("p", 1), "r", [image])
    for images in ((), (image, image)):
        with pytest.raises(ImageMismatch):
            await vllm.score(dataclasses.replace(prompt, images=images))


async def test_more_images_than_configured(vllm: VllmEngine, renderer: PromptRenderer, image: LoadedImage) -> None:
    with pytest.raises(TooManyImages, match="3 images, at most 2"):
        await vllm.score(renderer.render(single_turn("p", 3), "r", [image] * 3))


async def test_a_picture_that_the_processor_does_not_take(vllm: VllmEngine, renderer: PromptRenderer) -> None:
    """As an error of the image, as with the transformers engine, and without the prompt, which vLLM quotes."""
    with pytest.raises(ImageError, match="the model's image processor does not take the image: absolute aspect ratio"):
        await vllm.score(renderer.render(single_turn("p", 1), "r", [picture((2, 600))]))


async def test_too_long_a_text_is_refused_with_the_counts(vllm: VllmEngine, renderer: PromptRenderer) -> None:
    prompt = renderer.render(single_turn("p", 0), "word " * MAX_TOKENS)
    with pytest.raises(PromptTooLong, match=f"{len(prompt.token_ids)} tokens .* at most {MAX_TOKENS}"):
        await vllm.score(prompt)


def too_long_with_its_image(renderer: PromptRenderer, shown: LoadedImage) -> Prompt:
    """A prompt that is refused once the engine has processed the image."""
    words = "x" * 16
    while len(renderer.token_ids(single_turn("p", 1), words)) < MAX_TOKENS - 8:
        words += "x" * 4
    return renderer.render(single_turn("p", 1), words, [shown])


async def test_an_image_of_a_refused_request_scores_in_the_next(vllm: VllmEngine, renderer: PromptRenderer) -> None:
    """vLLM believes then that its core has the image, and all requests that name it now fail together."""
    for number in range(8):
        shown = picture((90, 60), (1, 2, number))
        with pytest.raises(PromptTooLong):
            await vllm.score(too_long_with_its_image(renderer, shown))
        prompt = renderer.render(single_turn("p", 1), "short", [shown])
        scores = await asyncio.gather(*(vllm.score(prompt) for _ in range(16)))
        expected = (await vllm.score(prompt, fresh=True)).logit
        assert [score.logit for score in scores] == [pytest.approx(expected, abs=1e-4)] * 16


async def test_an_image_that_others_are_refused_with_all_the_time_scores(
    vllm: VllmEngine, renderer: PromptRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is too long comes right before each attempt, and vLLM believes anew that its core has the image."""
    shown = picture((90, 60), (3, 2, 1))
    prompt, too_long = renderer.render(single_turn("p", 1), "short", [shown]), too_long_with_its_image(renderer, shown)
    expected = (await vllm.score(prompt, fresh=True)).logit
    encode = vllm._encode

    async def encode_after_a_refusal(prompt: Prompt, salt: str) -> EngineScore:
        with pytest.raises(PromptTooLong):
            await encode(too_long, "")
        return await encode(prompt, salt)

    monkeypatch.setattr(vllm, "_encode", encode_after_a_refusal)
    assert (await vllm.score(prompt)).logit == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def processed(vllm: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """The prompts whose images vLLM was asked to process."""
    prompts: list[Prompt] = []
    process = vllm._process

    async def counted(prompt: Prompt, salt: str) -> Any:
        prompts.append(prompt)
        return await process(prompt, salt)

    monkeypatch.setattr(vllm, "_process", counted)
    return prompts


@pytest.mark.parametrize("images", [1, 2])
async def test_images_of_a_shared_prefix_are_processed_once(
    vllm: VllmEngine, renderer: PromptRenderer, processed: list[Prompt], images: int
) -> None:
    shown = [picture((70 + 30 * number, 50), (7, 7, images)) for number in range(images)]
    prompts = [renderer.render(single_turn("Which?", images), response, shown) for response in RESPONSES]
    scores = await asyncio.gather(*map(vllm.score, prompts))
    assert len(processed) == 1
    fresh = [await vllm.score(prompt, fresh=True) for prompt in prompts]
    assert len(processed) == 1 + len(prompts)
    for score, anew in zip(scores, fresh, strict=True):
        assert score.logit == pytest.approx(anew.logit, abs=1e-4)
        assert score.prompt_tokens == anew.prompt_tokens
    await vllm.score(renderer.render(single_turn("Or which one?", images), RESPONSES[0], shown))
    assert len(processed) == 1 + len(prompts), "the text is behind the images"
    others = shown[::-1] if images > 1 else [picture((70, 51))]
    await vllm.score(renderer.render(single_turn("Which?", images), RESPONSES[0], others))
    assert len(processed) == 2 + len(prompts)


async def test_an_image_that_vllm_forgot_is_sent_again(
    vllm: VllmEngine, renderer: PromptRenderer, processed: list[Prompt]
) -> None:
    """Here alone, or in the core alone, which says so."""
    first, second = (renderer.render(single_turn("p", 1), text, [picture((66, 44))]) for text in ("first", "second"))
    expected = [(await vllm.score(prompt)).logit for prompt in (first, second)]
    assert len(processed) == 1
    llm = vllm._llm
    llm.renderer.mm_processor_cache.invalidate(first.images[0].sha256)
    assert (await vllm.score(first)).logit == pytest.approx(expected[0], abs=1e-4)
    assert len(processed) == 2
    await llm.engine_core.reset_mm_cache_async()
    assert (await vllm.score(second, fresh=False)).logit == pytest.approx(expected[1], abs=1e-4)
    assert len(processed) == 3


async def test_a_cancelled_request_harms_no_other(vllm: VllmEngine, renderer: PromptRenderer) -> None:
    shown = picture((80, 70), (4, 5, 6))
    prompt = renderer.render(single_turn("p", 1), "r", [shown])
    for turns in range(1, 12):
        request = asyncio.ensure_future(vllm.score(prompt))
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    assert (await vllm.score(prompt)).logit == pytest.approx((await vllm.score(prompt, fresh=True)).logit, abs=1e-4)


async def test_an_engine_that_is_not_started_is_unavailable(
    engine_settings: Settings, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    engine = create_engine(engine_settings, checkpoint)
    with pytest.raises(EngineUnavailable):
        await engine.score(renderer.render(single_turn("p", 0), "r"))
    await engine.stop()


async def test_the_reward_head_is_never_quantized(
    engine_settings: Settings, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {**engine_settings.engine_args, "quantization": "fp8_per_channel"}
    settings = engine_settings.model_copy(update={"dtype": "bfloat16", "engine_args": arguments})
    engine = create_engine(settings, checkpoint)
    try:
        await engine.start()
    finally:
        await engine.stop()
    monkeypatch.setattr(vllm_loading, "HEADS", [])
    engine = create_engine(settings, checkpoint)
    try:
        with pytest.raises(ConfigurationError, match=r"reward head of .* otherwise than it is stored \(Fp8"):
            await engine.start()
        assert not engine.healthy
    finally:
        await engine.stop()


async def test_images_that_exceed_the_cache_score_the_same(
    tiny_checkpoint: Path, checkpoint: Checkpoint, renderer: PromptRenderer
) -> None:
    """Two of a conversation together, and one alone."""
    cache = {"mm_processor_cache_gb": 6 * 128 * 128 * 1.5 / 2**30, "num_gpu_blocks_override": 512}
    settings = load_settings({"checkpoint": tiny_checkpoint, "max_model_len": MAX_TOKENS, "engine_args": cache})
    engine = create_engine(settings, checkpoint)
    await engine.start()
    try:
        for shown in ([picture((128, 128)), picture((128, 128), (30, 30, 200))], [picture((300, 300))]):
            conversation = single_turn("Which?", len(shown))
            prompts = [renderer.render(conversation, response, shown) for response in RESPONSES]
            together = await asyncio.gather(*map(engine.score, prompts))
            alone = [await engine.score(prompt, fresh=True) for prompt in prompts]
            assert [one.logit for one in together] == pytest.approx([one.logit for one in alone], abs=1e-4)
    finally:
        await engine.stop()


@pytest.mark.parametrize(
    ("values", "error"), [([], EngineUnavailable), ([1.0, 2.0], EngineUnavailable), ([math.nan], EngineError)]
)
def test_a_result_that_is_no_reward_is_an_error(values: list[float], error: type[Exception]) -> None:
    import torch

    with pytest.raises(error):
        _read(SimpleNamespace(error=None, outputs=SimpleNamespace(data=torch.tensor(values))))
