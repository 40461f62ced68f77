"""Rewards of rendered prompts, straight from the torch model: what training and `beholder adopt` compute."""

from collections.abc import Sequence

import torch

from beholder.modeling.inputs import PromptEncoder, collate, to_device
from beholder.modeling.reward_model import RewardModel
from beholder.prompts import Prompt


@torch.inference_mode()
def score_prompts(model: RewardModel, encoder: PromptEncoder, prompts: Sequence[Prompt]) -> list[float]:
    """Rewards of prompts that differ in their response alone, in one packed forward."""
    batch = collate([encoder.encode(prompts)], encoder.image_token_id, encoder.pad_token_id)
    rewards: list[float] = model.eval()(**to_device(batch, model.score.weight.device)).tolist()
    return rewards
