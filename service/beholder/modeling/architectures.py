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

    vision: attribute of the backbone that holds the vision tower; empty for a text-only family.
    projectors: the backbone's modules, inside the tower or not, that take its features to the language model's width.
    renames: (prefix in the backbone's state dict, prefix in the checkpoint), first match wins.
    head_key: where stock vLLM looks for the reward head.
    text_num_labels: whether vLLM reads the number of labels from the text model's config too.
    """

    model_type: str
    served_class: str
    vision: str
    projectors: tuple[str, ...]
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

    @property
    def reads_images(self) -> bool:
        return bool(self.vision)

    @property
    def head_bias_key(self) -> str:
        """Where stock vLLM looks for the head's bias, which only some models have."""
        return self.head_key.removesuffix("weight") + "bias"

    def served_config(self, config: dict[str, Any], dtype: str) -> dict[str, Any]:
        """The config.json of a checkpoint from that of its backbone."""
        label = {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
        served = config | label | {"architectures": [self.served_class], "dtype": dtype}
        if self.text_num_labels:
            served["text_config"] = served["text_config"] | label
        return served


ARCHITECTURES = {
    "qwen3_vl": Architecture(
        model_type="qwen3_vl",
        served_class="Qwen3VLForSequenceClassification",
        vision="visual",
        projectors=("visual.merger", "visual.deepstack_merger_list"),
        renames=(("visual.", "model.visual."), ("language_model.", "model.language_model.")),
        head_key="score.weight",
        text_num_labels=False,
    ),
    "qwen2_5_vl": Architecture(
        model_type="qwen2_5_vl",
        served_class="Qwen2_5_VLForSequenceClassification",
        vision="visual",
        projectors=("visual.merger",),
        renames=(("visual.", "model.visual."), ("language_model.", "model.language_model.")),
        head_key="language_model.score.weight",
        text_num_labels=False,
    ),
    "internvl": Architecture(
        model_type="internvl",
        served_class="InternVLForSequenceClassification",
        vision="vision_tower",
        projectors=("multi_modal_projector",),
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
        projectors=("multi_modal_projector",),
        renames=(
            ("vision_tower.", "model.vision_tower.vision_model."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
            ("language_model.", "model.language_model."),
        ),
        head_key="language_model.score.weight",
        text_num_labels=True,
    ),
}


TEXT_ARCHITECTURES = {
    model_type: Architecture(
        model_type=model_type,
        served_class=f"{family}ForSequenceClassification",
        vision="",
        projectors=(),
        renames=(("", "model."),),
        head_key="score.weight",
        text_num_labels=False,
    )
    for model_type, family in {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}.items()
}
"""Served when adopted, not trained: they see no picture."""


def architecture_of(config: Any) -> Architecture:
    """The entry for a Hugging Face config. Raises CheckpointError for a family that cannot be served."""
    known = ARCHITECTURES | TEXT_ARCHITECTURES
    model_type = getattr(config, "model_type", None)
    if model_type not in known:
        raise CheckpointError(
            f"model type {model_type!r} is not supported: stock vLLM cannot load its reward head; "
            f"use one of {', '.join(ARCHITECTURES)} (text alone, adopted: {', '.join(TEXT_ARCHITECTURES)})"
        )
    return known[model_type]
