"""Configurations, models and processors of the tiny bases, one function an architecture.

Each returns the Hugging Face processor and the base model (without language-model head), with whatever weights
Hugging Face draws; bases.py draws them anew.
"""

from dataclasses import dataclass
from typing import Any

from beholder_training.base_tokenizers import INTERNVL_TOKENS, LLAVA_TOKENS, QWEN_TOKENS, make_tokenizer


@dataclass(frozen=True, slots=True)
class BaseSize:
    """Width and depth of a base. `std` initialises every matrix; None is 1/sqrt(its input width).

    key_value_heads, intermediate: 0 takes `heads`, and four times `hidden`. deepstack: the vision layers that Qwen3-VL
    feeds to its first text layers. tile: patches on a side of the tiles of InternVL and of LLaVA's picture.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 2
    key_value_heads: int = 0
    intermediate: int = 0
    vision_hidden: int = 64
    vision_layers: int = 2
    vision_heads: int = 2
    patch: int = 8
    deepstack: tuple[int, ...] = (0,)
    tile: int = 8
    vocabulary: int = 512
    std: float | None = None


def _text_config(size: BaseSize, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate or size.hidden * 4,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.key_value_heads or size.heads,
        "max_position_embeddings": 8192,
        **more,
    }


def _mrope(head_dim: int) -> dict[str, Any]:
    """Rotary sections for temporal, height and width positions: they sum to half the head's width."""
    side = head_dim // 6
    return {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [head_dim // 2 - 2 * side, side, side],
        "mrope_interleaved": True,
    }


def _qwen_ids(tokenizer: Any) -> dict[str, Any]:
    names = {"image_token_id": "image", "video_token_id": "video", "vision_start_token_id": "start"}
    ids = {key: tokenizer.convert_tokens_to_ids(QWEN_TOKENS[name]) for key, name in names.items()}
    return {**ids, "vision_end_token_id": tokenizer.convert_tokens_to_ids(QWEN_TOKENS["end"])}


def _qwen_processors(size: BaseSize) -> tuple[Any, Any]:
    from transformers import Qwen2VLImageProcessor, Qwen3VLVideoProcessor

    side = size.patch * 2
    options = {"patch_size": size.patch, "merge_size": 2, "temporal_patch_size": 2}
    image = Qwen2VLImageProcessor(size={"shortest_edge": side * side * 4, "longest_edge": 1024 * 1024}, **options)
    video = Qwen3VLVideoProcessor(**options)
    return image, video


def qwen3_vl(size: BaseSize, texts: list[str]) -> tuple[Any, Any]:
    from transformers import Qwen3VLConfig, Qwen3VLModel, Qwen3VLProcessor

    tokenizer = make_tokenizer(size.vocabulary, texts, QWEN_TOKENS)
    head_dim = size.hidden // size.heads
    config = Qwen3VLConfig(
        text_config=_text_config(size, head_dim=head_dim, rope_parameters=_mrope(head_dim)),
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_hidden * 4,
            "num_heads": size.vision_heads,
            "patch_size": size.patch,
            "out_hidden_size": size.hidden,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": list(size.deepstack),
        },
        tie_word_embeddings=True,
        **_qwen_ids(tokenizer),
    )
    image, video = _qwen_processors(size)
    processor = Qwen3VLProcessor(image, tokenizer, video, chat_template=tokenizer.chat_template)
    return processor, Qwen3VLModel(config)


def qwen2_5_vl(size: BaseSize, texts: list[str]) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2_5_VLProcessor

    tokenizer = make_tokenizer(size.vocabulary, texts, QWEN_TOKENS)
    rope = {**_mrope(size.hidden // size.heads), "mrope_interleaved": False}
    config = Qwen2_5_VLConfig(
        text_config=_text_config(size, rope_parameters=rope),
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_hidden * 4,
            "num_heads": size.vision_heads,
            "patch_size": size.patch,
            "spatial_patch_size": size.patch,
            "out_hidden_size": size.hidden,
            "fullatt_block_indexes": [size.vision_layers - 1],
            "window_size": size.patch * 8,
        },
        tie_word_embeddings=True,
        **_qwen_ids(tokenizer),
    )
    image, video = _qwen_processors(size)
    processor = Qwen2_5_VLProcessor(image, tokenizer, video, chat_template=tokenizer.chat_template)
    return processor, Qwen2_5_VLModel(config)


def internvl(size: BaseSize, texts: list[str]) -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLModel,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    tokenizer = make_tokenizer(size.vocabulary, texts, INTERNVL_TOKENS)
    side = size.patch * size.tile
    config = InternVLConfig(
        text_config=_text_config(size, model_type="qwen2"),
        vision_config={
            "num_hidden_layers": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_hidden * 4,
            "num_attention_heads": size.vision_heads,
            "image_size": [side, side],
            "patch_size": [size.patch, size.patch],
        },
        image_token_id=tokenizer.convert_tokens_to_ids(INTERNVL_TOKENS["image"]),
        image_seq_length=(size.tile // 2) ** 2,
        tie_word_embeddings=True,
    )
    pixels = {"height": side, "width": side}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=pixels, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        InternVLVideoProcessor(size=pixels),
        image_seq_length=(size.tile // 2) ** 2,
        chat_template=tokenizer.chat_template,
    )
    return processor, InternVLModel(config)


def llava(size: BaseSize, texts: list[str]) -> tuple[Any, Any]:
    from transformers import LlavaConfig, LlavaModel, LlavaProcessor, SiglipImageProcessor

    tokenizer = make_tokenizer(size.vocabulary, texts, LLAVA_TOKENS)
    side = size.patch * size.tile
    config = LlavaConfig(
        text_config=_text_config(size, model_type="qwen2"),
        vision_config={
            "model_type": "siglip_vision_model",
            "num_hidden_layers": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_hidden * 4,
            "num_attention_heads": size.vision_heads,
            "image_size": side,
            "patch_size": size.patch,
            "vision_use_head": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids(LLAVA_TOKENS["image"]),
        image_seq_length=size.tile**2,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    processor = LlavaProcessor(
        SiglipImageProcessor(size={"height": side, "width": side}),
        tokenizer,
        patch_size=size.patch,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
        num_additional_image_tokens=0,
    )
    return processor, LlavaModel(config)
