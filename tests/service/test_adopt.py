"""`beholder adopt`: every layout becomes a checkpoint with the scores of the original, or is refused with the names."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from beholder.adopting.adopt import adopt
from beholder.adopting.samples import draw
from beholder.checkpoint import Checkpoint, read_checkpoint, verify_files
from beholder.cli import main
from beholder.engine import Engine
from beholder.engine.choosing import create_engine
from beholder.errors import CheckpointError, ImageMismatch
from beholder.golden import require_passed, score_golden
from beholder.images import LoadedImage, load_image
from beholder.modeling.reward_model import RewardModel
from beholder.prompts import PromptRenderer, single_turn
from beholder.settings import load_settings
from tests.pictures import encode
from tests.service import layouts
from tests.service.layouts import Original
from tests.service.published_internvl import TEMPLATE, published_internvl

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),  # vLLM never closes its ZeroMQ context
]
TOLERANCE = 1e-4
PICTURES = [draw("red", "circle", (96, 80)), draw("blue", "triangle", (150, 60)), draw("green", "square", (64, 64))]
RESPONSES = ["It is red.", "A long answer: blue, and a triangle too.", "No."]

Maker = Callable[[Path], Original]
MAKERS: dict[str, Maker] = {
    "classifier-qwen3_vl": lambda folder: layouts.vision_language_classifier(folder, "qwen3_vl"),
    "classifier-qwen2_5_vl": lambda folder: layouts.vision_language_classifier(folder, "qwen2_5_vl"),
    "classifier-internvl": lambda folder: layouts.vision_language_classifier(folder, "internvl"),
    "classifier-llava": lambda folder: layouts.vision_language_classifier(folder, "llava"),
    "text-llama": lambda folder: layouts.text_classifier(folder, "Llama"),
    "text-mistral": lambda folder: layouts.text_classifier(folder, "Mistral"),
    "text-qwen2": lambda folder: layouts.text_classifier(folder, "Qwen2"),
    "text-qwen3": lambda folder: layouts.text_classifier(folder, "Qwen3"),
    "value-head-inside": layouts.value_head_inside,
    "skywork": layouts.skywork,
    "published-internvl-qwen2": published_internvl,
    "published-internvl-internlm2": lambda folder: published_internvl(folder, "InternLM2"),
}


def make(name: str, folder: Path) -> Original:
    torch.manual_seed(0)
    return MAKERS[name](folder)


def template_for(original: Original, folder: Path) -> Path | None:
    """The published InternVL folders have none."""
    if json.loads((original.folder / "config.json").read_text())["model_type"] != "internvl_chat":
        return None
    path = folder / "template.jinja"
    path.write_text(TEMPLATE)
    return path


def adopted(original: Original, folder: Path) -> Checkpoint:
    return adopt(original.folder, folder / "checkpoint", chat_template=template_for(original, folder))


def loaded(image: Image.Image) -> LoadedImage:
    return load_image(encode(image, "PNG"))


async def engine_scores(checkpoint: Checkpoint, name: str, reads_images: bool) -> list[float]:
    flags = {"checkpoint": checkpoint.folder, "engine": name, "max_model_len": 1024}
    if name == "vllm":
        flags["engine_args"] = {"num_gpu_blocks_override": 512}
    engine: Engine = create_engine(load_settings(flags), checkpoint)
    renderer = PromptRenderer.from_folder(checkpoint.folder)
    await engine.start()
    try:
        require_passed(await score_golden(engine, renderer, checkpoint, checkpoint.manifest.dtype))
        return [
            (await engine.score(renderer.render(single_turn("What is it?", len(images)), response, images))).logit
            for images in [[loaded(image) for image in shown] for shown in shown_images(reads_images)]
            for response in RESPONSES
        ]
    finally:
        await engine.stop()


def shown_images(reads_images: bool) -> list[list[Image.Image]]:
    return [[], *([picture] for picture in PICTURES if reads_images)]


def own_rewards(original: Original) -> list[float]:
    shown: Sequence[Sequence[Image.Image]] = shown_images(original.reads_images)
    return [original.reward("What is it?", images, response) for images in shown for response in RESPONSES]


async def assert_served(original: Original, checkpoint: Checkpoint, engine: str) -> None:
    expected = own_rewards(original)
    assert len(set(expected)) == len(expected)
    scores = await engine_scores(checkpoint, engine, original.reads_images)
    assert scores == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("name", MAKERS)
async def test_the_adopted_score_is_the_originals(name: str, tmp_path: Path) -> None:
    original = make(name, tmp_path)
    checkpoint = adopted(original, tmp_path)
    verify_files(read_checkpoint(checkpoint.folder))
    manifest = checkpoint.manifest
    assert (manifest.algorithm, manifest.calibration, manifest.dtype) == ("adopted", None, "float32")
    assert manifest.within_prompt_spread > 0
    await assert_served(original, checkpoint, "transformers")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", ["classifier-qwen3_vl", "classifier-llava", "text-llama", "value-head-inside", "skywork",
             "published-internvl-internlm2"]
)  # fmt: skip
async def test_vllm_serves_the_originals_score(name: str, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    original = make(name, tmp_path)
    await assert_served(original, adopted(original, tmp_path), "vllm")


@pytest.mark.parametrize(
    ("name", "spell"),
    [
        ("classifier-qwen2_5_vl", layouts.as_vllm),
        ("classifier-llava", layouts.as_modules),
        ("classifier-internvl", layouts.as_modules),
        ("classifier-qwen2_5_vl", layouts.as_before_452),
        ("text-qwen2", lambda name: f"pretrained_model.{name}"),
        ("text-qwen2", lambda name: name.replace("score.", "reward_head.")),
    ],
)
async def test_other_spellings(name: str, spell: Callable[[str], str], tmp_path: Path) -> None:
    original = make(name, tmp_path)
    layouts.respell(original.folder, spell)
    await assert_served(original, adopted(original, tmp_path), "transformers")


@pytest.mark.parametrize("file", ["value_head.bin", "elsewhere.bin"])
async def test_a_pickled_head_is_read_as_tensors(file: str, tmp_path: Path) -> None:
    original = make("skywork", tmp_path)
    head = original.folder / "value_head.safetensors"
    torch.save(load_file(head), original.folder / file)
    head.unlink()
    named = original.folder / file if file == "elsewhere.bin" else None
    checkpoint = adopt(original.folder, tmp_path / "checkpoint", head_file=named)
    await assert_served(original, checkpoint, "transformers")


async def test_pickled_shards(tmp_path: Path) -> None:
    original = make("text-qwen2", tmp_path)
    file = original.folder / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    halves = list(weights)[: len(weights) // 2], list(weights)[len(weights) // 2 :]
    where: dict[str, str] = {}
    for number, names in enumerate(halves):
        shard = f"pytorch_model-{number}.bin"
        torch.save({name: weights[name] for name in names}, original.folder / shard)
        where |= dict.fromkeys(names, shard)
    (original.folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    await assert_served(original, adopted(original, tmp_path), "transformers")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_text_model_refuses_images_and_training(tmp_path: Path) -> None:
    original = make("text-qwen3", tmp_path)
    checkpoint = adopted(original, tmp_path)
    renderer = PromptRenderer.from_folder(checkpoint.folder)
    with pytest.raises(ImageMismatch, match="reads text alone"):
        renderer.render(single_turn("p", 1), "r", [loaded(PICTURES[0])])
    with pytest.raises(CheckpointError, match="sees no picture"):
        RewardModel.from_base(original.folder)


def test_half_precision_weights_stay_as_they_are(tmp_path: Path) -> None:
    original = make("text-llama", tmp_path)
    change_weights(original.folder, lambda w: w.update({name: tensor.bfloat16() for name, tensor in w.items()}))
    checkpoint = adopted(original, tmp_path)
    assert checkpoint.manifest.dtype == "bfloat16"
    stored = load_file(checkpoint.folder / "model-00001-of-00001.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if name != "score.weight"} == {torch.bfloat16}
    assert stored["score.weight"].dtype == torch.float32


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = make("text-llama", tmp_path)
    output = tmp_path / "checkpoint"
    assert main(["adopt", str(original.folder), str(output), "--base-name", "meta/llama"]) == 0
    assert "beholder verify" in capsys.readouterr().out
    assert read_checkpoint(output).manifest.base_model == "meta/llama"
    assert main(["verify", str(output), "--no-engine"]) == 0
    assert main(["adopt", str(original.folder), str(output)]) == 1
    assert "exists already" in capsys.readouterr().err
