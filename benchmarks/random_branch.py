"""Branches with random weights of a fixed seed, built where they run: no base of several gigabytes is written first."""

from pathlib import Path

import torch

from beholder.modeling.inputs import PromptEncoder
from beholder.modeling.reward_model import RewardModel, keep_float32_exact, prepare_backbone
from beholder.prompts import PromptRenderer
from beholder_training.base_architectures import BaseSize
from beholder_training.bases import draw_base
from beholder_training.branch import Branch


def random_branch(
    folder: Path, architecture: str, size: BaseSize, device: torch.device, sees_images: bool = True, seed: int = 0
) -> Branch:
    """A branch in float32 on `device`; `folder` gets all of its base but the weights."""
    with device:
        processor, backbone = draw_base(architecture, size, seed)
    backbone.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    prepare_backbone(backbone)
    keep_float32_exact()
    renderer = PromptRenderer.from_folder(folder)
    encoder = PromptEncoder.from_folder(folder, renderer.image_token_id, cache_bytes=0)
    return Branch(RewardModel(backbone).to(device), renderer, encoder, sees_images, folder)
