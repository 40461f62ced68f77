"""The architectures that Beholder trains and serves, and how their checkpoints are laid out.

Measured against vLLM 0.32: these keys and config entries load in stock vLLM with no plugin. Others are refused with
the reason, since a checkpoint that loads half-way would be served with a random part.
"""

from dataclasses import dataclass
from typing import Any

from beholder.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one model family is named and stored.

    vision: attribute of the backbone that holds the vision tower.
    renames: (prefix in the backbone's state dict, prefix in the checkpoint), first match wins.
    head_key: where stock vLLM looks for the reward head.
    """

    model_type: str
    served_class: str
    vision: str
    renames: tuple[tuple[str, str], ...]
    head_key: str
    text_num_labels: bool

    def checkpoint_key(self, backbone_key: str) -> str:
        for prefix, replacement in self.renames:
            if backbone_key.startswith(prefix):
                return replacement + backbone_key.removeprefix(prefix)
        raise CheckpointError(f"{self.model_type}: weight {backbone_key} has no place in a checkpoint")

    def backbone_key(self, checkpoint_key: str) -> str:
        """The inverse of `checkpoint_key`."""
        for replacement, prefix in self.renames:
            if checkpoint_key.startswith(prefix):
                return replacement + checkpoint_key.removeprefix(prefix)
        raise CheckpointError(f"{self.model_type}: unknown weight {checkpoint_key}")


ARCHITECTURES = {
    "qwen3_vl": Architecture(
        model_type="qwen3_vl",
        served_class="Qwen3VLForSequenceClassification",
        vision="visual",
        renames=(("visual.", "model.visual."), ("language_model.", "model.language_model.")),
        head_key="score.weight",
        text_num_labels=False,
    ),
    "qwen2_5_vl": Architecture(
        model_type="qwen2_5_vl",
        served_class="Qwen2_5_VLForSequenceClassification",
        vision="visual",
        renames=(("visual.", "model.visual."), ("language_model.", "model.language_model.")),
        head_key="language_model.score.weight",
        text_num_labels=False,
    ),
    "internvl": Architecture(
        model_type="internvl",
        served_class="InternVLForSequenceClassification",
        vision="vision_tower",
        renames=(
            ("vision_tower.", "model.vision_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
            ("language_model.", "model.language_model."),
        ),
        head_key="language_model.score.weight",
        text_num_labels=True,
    ),
    "llava": Architecture(
        model_type="llava",
        served_class="LlavaForSequenceClassification",
        vision="vision_tower",
        renames=(
            ("vision_tower.", "model.vision_tower.vision_model."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
            ("language_model.", "model.language_model."),
        ),
        head_key="language_model.score.weight",
        text_num_labels=True,
    ),
}


def architecture_of(config: Any) -> Architecture:
    """The entry for a Hugging Face config. Raises CheckpointError for a family that cannot be served."""
    model_type = getattr(config, "model_type", None)
    if model_type not in ARCHITECTURES:
        raise CheckpointError(
            f"model type {model_type!r} is not supported: stock vLLM cannot load its reward head; "
            f"use one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[model_type]
