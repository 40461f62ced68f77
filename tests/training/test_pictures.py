"""Pictures that go through processor and vision tower together give what each gives alone."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoProcessor

from beholder.images import load_image
from beholder.modeling.architectures import ARCHITECTURES
from beholder.modeling.inputs import PromptEncoder, collate
from beholder.modeling.packing import PADDING, PREFIX
from beholder.modeling.picture_attention import picture_attention
from beholder.modeling.reward_model import RewardModel, mrope_positions
from beholder.prompts import IMAGE, PromptRenderer, Turn
from beholder_training.bases import make_base
from tests.pictures import png
from tests.training.runs import store_tiling

SIZES = [(64, 64), (100, 60), (64, 64), (28, 90), (300, 200), (1100, 1000), (100, 60)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_pictures_processed_together_are_those_processed_alone(architecture: str, backend: str, tmp_path: Path) -> None:
    make_base(tmp_path / "base", architecture)
    image_token_id = PromptRenderer.from_folder(tmp_path / "base").image_token_id
    images = [load_image(png(*size)) for size in SIZES]
    encoders = [
        PromptEncoder.from_folder(tmp_path / "base", image_token_id, cache_bytes=0, backend=backend) for _ in range(2)
    ]
    together = encoders[0].pictures(images)
    for picture, image in zip(together, images, strict=True):
        (alone,) = encoders[1].pictures([image])
        assert picture.token_ids == alone.token_ids
        assert picture.tensors.keys() == alone.tensors.keys()
        assert all(torch.equal(tensor, alone.tensors[name]) for name, tensor in picture.tensors.items())
        assert picture.bytes == sum(tensor.untyped_storage().nbytes() for tensor in picture.tensors.values())


@pytest.mark.parametrize("stored", [{}, {"crop_to_patches": False}])
@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_internvl_sees_the_tiles_of_its_own_processor_whatever_is_stored(
    stored: dict[str, bool], backend: str, tmp_path: Path
) -> None:
    """As vLLM, which calls that processor."""
    make_base(tmp_path / "base", "internvl")
    store_tiling(tmp_path / "base", stored)
    encoder = PromptEncoder.from_folder(
        tmp_path / "base", PromptRenderer.from_folder(tmp_path / "base").image_token_id, backend=backend
    )
    encoder.save(tmp_path / "saved")
    assert encoder.processor_settings()["crop_to_patches"] is True
    for folder in ("base", "saved"):
        plain = AutoProcessor.from_pretrained(tmp_path / folder)
        for size, tiles in (((64, 64), 1), ((300, 200), 5)):
            image = load_image(png(*size))
            (picture,) = encoder.pictures([image])
            expected = plain(images=[image.pixels], text=[plain.image_token], return_tensors="pt")
            assert len(picture.tensors["pixel_values"]) == len(expected["pixel_values"]) == tiles
            assert picture.token_ids == expected["input_ids"][0].tolist()


@pytest.mark.parametrize("architecture", ["qwen3_vl", "qwen2_5_vl"])
def test_positions_are_those_of_plain_hugging_face(architecture: str, tmp_path: Path) -> None:
    """Rows with two pictures, one and none; each response as if it stood alone."""
    make_base(tmp_path / "base", architecture)
    renderer = PromptRenderer.from_folder(tmp_path / "base")
    encoder = PromptEncoder.from_folder(tmp_path / "base", renderer.image_token_id)
    backbone = RewardModel.from_base(tmp_path / "base").backbone
    two = (Turn("user", ("First", IMAGE, "and", IMAGE, "which?")),)
    pictures = [load_image(png(*size)) for size in SIZES]
    prompts = [
        [renderer.render(two, text, [pictures[1], pictures[3]]) for text in ("A", "Not that one.", "B")],
        [renderer.render((Turn("user", (IMAGE, "?")),), "Yes.", [pictures[4]])],
        [renderer.render((Turn("user", ("Hello?",)),), text) for text in ("Hi.", "No.")],
    ]
    groups = [encoder.encode(group) for group in prompts]
    batch = collate(groups, renderer.image_token_id, encoder.pad_token_id)
    positions = mrope_positions(
        batch["segments"], batch["offsets"], batch["mm_token_type_ids"], batch["pictures"]["image_grid_thw"],
        backbone.config.vision_config.spatial_merge_size,
    )  # fmt: skip
    for row, (group, encoded) in enumerate(zip(prompts, groups, strict=True)):
        for number, prompt in enumerate(group, start=1):
            ids = torch.tensor([encoder.expand(prompt, encoded.pictures)])
            types = ids.eq(renderer.image_token_id or 0).long()
            grids = [picture.tensors["image_grid_thw"] for picture in encoded.pictures]
            expected, _ = backbone.get_rope_index(
                input_ids=ids, mm_token_type_ids=types, image_grid_thw=torch.cat(grids) if grids else None
            )
            segments = batch["segments"][row]
            own = (segments == PREFIX) | (segments == number)
            assert torch.equal(positions[:, row, own], expected[:, 0])
        assert not positions[:, row, batch["segments"][row] == PADDING].any()


def test_a_patch_sees_its_own_picture_alone() -> None:
    torch.manual_seed(0)
    lengths = [4, 4, 9, 4, 9, 9]
    query, key, value = (torch.randn(1, 3, sum(lengths), 8) for _ in range(3))
    ends = torch.tensor([0, *lengths]).cumsum(0)
    found, _ = picture_attention(torch.nn.Identity(), query, key, value, None, scaling=0.3, cu_seq_lens_q=ends)
    parts = (states.split(lengths, dim=2) for states in (query, key, value))
    alone = [scaled_dot_product_attention(q, k, v, scale=0.3) for q, k, v in zip(*parts, strict=True)]
    assert torch.allclose(found, torch.cat(alone, dim=2).transpose(1, 2), atol=1e-6)
