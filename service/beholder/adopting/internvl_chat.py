"""The published InternVL layout (InternVLChatModel, InternVL2 to 3) in terms of transformers' native InternVL.

Its vision tower packs q, k and v in one matrix, and InternLM2 language models pack them by groups of heads; both are
cut apart. The names' correspondence is that of transformers' own conversion of these models. The folder's Python code,
which would write the prompts, is not run: the chat template has to be given.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from beholder.adopting.layouts import Move
from beholder.adopting.source import Source
from beholder.error_lines import first_line
from beholder.errors import CheckpointError

CONTEXT_TOKEN = "<IMG_CONTEXT>"
_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": CONTEXT_TOKEN,
    "video_token": "<video>",
}
_LANGUAGE_MODELS = {"Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama", "InternLM2ForCausalLM": "llama"}
_TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip
_VISION_FIELDS = {
    "hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads", "image_size": "image_size", "patch_size": "patch_size",
    "num_channels": "num_channels", "hidden_act": "hidden_act", "layer_norm_eps": "layer_norm_eps",
    "norm_type": "norm_type", "qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm",
}  # fmt: skip
_LAYER = r"vision_tower.encoder.layer.\1."
_RENAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "vision_tower.embeddings.patch_embeddings.projection."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.ls([12])$", _LAYER + r"lambda_\2"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.attn\.proj\.", _LAYER + "attention.projection_layer."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.attn\.", _LAYER + "attention."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.norm1\.", _LAYER + "layernorm_before."),
    (r"^vision_model\.encoder\.layers\.(\d+)\.norm2\.", _LAYER + "layernorm_after."),
    (r"^vision_model\.encoder\.layers\.", "vision_tower.encoder.layer."),
    (r"^mlp1\.0\.", "multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "multi_modal_projector.linear_2."),
    (r"^language_model\.model\.", "language_model."),
)  # fmt: skip
_INTERNLM2_RENAMES = (
    ("tok_embeddings.", "embed_tokens."),
    ("attention.wo.", "self_attn.o_proj."),
    ("feed_forward.w1.", "mlp.gate_proj."),
    ("feed_forward.w2.", "mlp.down_proj."),
    ("feed_forward.w3.", "mlp.up_proj."),
    ("attention_norm.", "input_layernorm."),
    ("ffn_norm.", "post_attention_layernorm."),
)


class InternVLChat:
    """See `beholder.adopting.layouts.Layout`."""

    def __init__(self) -> None:
        self._text: dict[str, Any] = {}

    @staticmethod
    def matches(config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "internvl_chat" or "llm_config" in config

    def read_config(self, source: Source) -> Any:
        from transformers import InternVLConfig

        try:
            self._text = _text_config(source.config["llm_config"])
            vision = source.config["vision_config"]
            _check_computed_alike(source.config, vision)
            return InternVLConfig(
                text_config=self._text,
                vision_config={ours: vision[theirs] for theirs, ours in _VISION_FIELDS.items() if theirs in vision},
                image_token_id=_tokenizer(source).convert_tokens_to_ids(CONTEXT_TOKEN),
                image_seq_length=_tokens_a_tile(source.config),
                downsample_ratio=source.config.get("downsample_ratio", 0.5),
                tie_word_embeddings=False,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{source.folder / 'config.json'} is not a published InternVL's: {error!r}") from None

    def moves(self, name: str, expected: Mapping[str, Tensor]) -> list[Move]:
        target = _rename(name)
        if ".attention.qkv." in target and target.startswith("vision_tower."):
            parts = [
                (target.replace(".qkv.", f".{part}_proj."), partial(_third, number))
                for number, part in enumerate("qkv")
            ]
        elif target.endswith(".attention.wqkv.weight"):
            stem = target.removesuffix("attention.wqkv.weight")
            parts = [(f"{stem}self_attn.{part}_proj.weight", partial(self._group, part)) for part in "qkv"]
        else:
            return [Move(target)] if target in expected else []
        return [Move(part, take) for part, take in parts if part in expected]

    def _group(self, part: str, packed: Tensor) -> Tensor:
        """InternLM2 packs for each key-value head its n query heads, then k, then v: (groups * (n + 2) * d, hidden)."""
        heads, groups = self._text["num_attention_heads"], self._text["num_key_value_heads"]
        grouped = packed.unflatten(0, (groups, heads // groups + 2, -1))
        chosen: Tensor = {"q": grouped[:, :-2], "k": grouped[:, -2], "v": grouped[:, -1]}[part]
        return chosen.flatten(0, -2)

    def read_processor(self, source: Source, config: Any) -> Any:
        from transformers import GotOcr2ImageProcessorPil, InternVLProcessor, InternVLVideoProcessor

        tokenizer = _tokenizer(source)
        raw, side = source.config, config.vision_config.image_size
        size = {"height": side[0], "width": side[1]}
        tiled = raw.get("dynamic_image_size", False)
        image = GotOcr2ImageProcessorPil(  # the published model resizes with PIL
            size=size,
            crop_to_patches=True,  # vLLM reads it so whatever is stored; one tile is the picture as a whole
            min_patches=raw.get("min_dynamic_patch", 1) if tiled else 1,
            max_patches=raw.get("max_dynamic_patch", 12) if tiled else 1,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        )
        return InternVLProcessor(
            image, tokenizer, InternVLVideoProcessor(size=size), config.image_seq_length, tokenizer.chat_template
        )


def _text_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    family = (raw.get("architectures") or ["?"])[0]
    if family not in _LANGUAGE_MODELS:
        raise CheckpointError(f"its language model is a {family}; those of {', '.join(_LANGUAGE_MODELS)} can be mapped")
    scaling = dict(raw.get("rope_scaling") or {})
    kind = scaling.pop("type", scaling.pop("rope_type", "default"))
    if "rope_theta" not in raw or raw.get("use_sliding_window"):
        raise CheckpointError("its language model's config names no rope_theta, or a sliding window: not as published")
    if kind not in ("default", "dynamic"):  # dynamic scaling begins beyond max_position_embeddings: never served
        raise CheckpointError(f"its language model scales positions by {kind!r}, which has not been checked")
    return {
        **{field: raw[field] for field in _TEXT_FIELDS if field in raw},
        "model_type": _LANGUAGE_MODELS[family],
        "rope_parameters": {"rope_type": "default", "rope_theta": raw["rope_theta"]},
    }


def _check_computed_alike(config: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    """Refuse what the native model would compute otherwise."""
    allowed = {"ps_version": "v2", "select_layer": -1, "force_image_size": vision["image_size"], "pad2square": False}
    if config.get("dynamic_image_size", False):
        allowed["use_thumbnail"] = True
    for key, value in allowed.items():
        found = config.get(key, "v1" if key == "ps_version" else value)
        if found not in (value, None):
            raise CheckpointError(f"its {key} is {found!r}; only {value!r} is computed alike in the native InternVL")
    if config.get("use_backbone_lora") or config.get("use_llm_lora"):
        raise CheckpointError("its LoRA weights are apart: merge them first")


def _tokens_a_tile(config: Mapping[str, Any]) -> int:
    side = config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]
    return int(side * config.get("downsample_ratio", 0.5)) ** 2


def _tokenizer(source: Source) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.folder, trust_remote_code=False, local_files_only=True, extra_special_tokens=_TOKENS
        )
    except Exception as error:
        # Some of these folders have a tokenizer class of their own, which is not run.
        raise CheckpointError(
            f"{source.folder} has no tokenizer that transformers loads ({first_line(error)}): add a tokenizer.json"
        ) from None
    if tokenizer.convert_tokens_to_ids(CONTEXT_TOKEN) in (None, tokenizer.unk_token_id):
        raise CheckpointError(f"{source.folder}: the tokenizer has no token {CONTEXT_TOKEN}")
    return tokenizer


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            break
    else:
        return name
    if renamed.startswith("language_model."):
        for old, new in _INTERNLM2_RENAMES:
            renamed = renamed.replace(old, new)
    return renamed


def _third(number: int, packed: Tensor) -> Tensor:
    return packed.chunk(3)[number]
