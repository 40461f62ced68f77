"""Tiny vision-language bases with random weights, made offline: all four architectures, and one for benchmarks.

A base is a Hugging Face folder (config, weights, tokenizer, chat template, processor) just as a downloaded one.
Every matrix is drawn with one standard deviation that keeps activations well conditioned, so that float32 and bf16
scores can be compared.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beholder.errors import CheckpointError
from beholder_training import worlds

END, PAD = "<|im_end|>", "<|endoftext|>"
CHATML = (
    "{%- for message in messages -%}<|im_start|>{{ message['role'] }}\n"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}IMAGE{%- endif -%}"
    "{%- endfor -%}{%- endif -%}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
QWEN_TOKENS = {"image": "<|image_pad|>", "start": "<|vision_start|>", "end": "<|vision_end|>", "video": "<|video_pad|>"}
INTERNVL_TOKENS = {"image": "<IMG_CONTEXT>", "start": "<img>", "end": "</img>", "video": "<video>"}
LLAVA_TOKENS = {"image": "<image>", "start": "", "end": "", "video": ""}


@dataclass(frozen=True, slots=True)
class BaseSize:
    """Width and depth of a base. `std` initialises every matrix; None is 1/sqrt(its input width)."""

    hidden: int = 64
    layers: int = 2
    heads: int = 2
    vision_hidden: int = 64
    vision_layers: int = 2
    vision_heads: int = 2
    patch: int = 8
    vocabulary: int = 512
    std: float | None = None


TINY = BaseSize()
BENCHMARK_80M = BaseSize(
    hidden=640, layers=12, heads=10, vision_hidden=384, vision_layers=6, vision_heads=6, patch=14, vocabulary=16_384
)


def make_base(
    folder: Path,
    architecture: str = "qwen3_vl",
    size: BaseSize = TINY,
    seed: int = 0,
    texts: Iterable[str] | None = None,
) -> None:
    """Write a base of `architecture` (a key of ARCHITECTURES) under `folder`.

    The tokenizer's vocabulary is learned from `texts`, by default those of the built-in world; any text encodes.
    """
    makers = {"qwen3_vl": _qwen3_vl, "qwen2_5_vl": _qwen2_5_vl, "internvl": _internvl, "llava": _llava}
    if architecture not in makers:
        raise CheckpointError(f"architecture {architecture!r} is unknown: use one of {', '.join(makers)}")
    torch.manual_seed(seed)
    processor, model = makers[architecture](size, list(texts or _world_texts()))
    initialise(model, size.std)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.no_grad()
def initialise(model: nn.Module, std: float | None) -> None:
    """Draw every matrix anew: Gaussian with `std`, or 1/sqrt(fan-in); embeddings with unit-scale rows."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std or 1 / math.sqrt(module.embedding_dim))
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            fan_in = module.weight.numel() // module.weight.shape[0]
            nn.init.normal_(module.weight, std=std or 1 / math.sqrt(fan_in))


def _world_texts() -> Iterable[str]:
    """Every phrase of the built-in world, so that its words are single tokens."""
    for style in worlds.STYLES:
        for answer in (*worlds.COLOURS, *worlds.COUNTS):
            yield worlds.phrase(answer, style)
    yield from worlds.QUESTIONS


def _tokenizer(size: BaseSize, texts: list[str], tokens: dict[str, str]) -> Any:
    """A byte-level BPE tokenizer (any text encodes) with ChatML turns and the architecture's image tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [PAD, "<|im_start|>", END, *filter(None, tokens.values())]
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=special,
        extra_special_tokens=_named_tokens(tokens),
    )
    around = tokens if tokens is QWEN_TOKENS else {"start": "", "end": ""}  # InternVL's processor adds its own
    tokenizer.chat_template = CHATML.replace("IMAGE", around["start"] + tokens["image"] + around["end"])
    return tokenizer


def _named_tokens(tokens: dict[str, str]) -> dict[str, str]:
    """The attributes that InternVL's processor reads from its tokenizer."""
    if tokens is not INTERNVL_TOKENS:
        return {}
    return {
        "start_image_token": tokens["start"],
        "end_image_token": tokens["end"],
        "context_image_token": tokens["image"],
        "video_token": tokens["video"],
    }


def _text_config(size: BaseSize, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.hidden * 4,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
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


def _qwen3_vl(size: BaseSize, texts: list[str]) -> tuple[Any, Any]:
    from transformers import Qwen3VLConfig, Qwen3VLModel, Qwen3VLProcessor

    tokenizer = _tokenizer(size, texts, QWEN_TOKENS)
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
            "deepstack_visual_indexes": [0],
        },
        tie_word_embeddings=True,
        **_qwen_ids(tokenizer),
    )
    image, video = _qwen_processors(size)
    processor = Qwen3VLProcessor(image, tokenizer, video, chat_template=tokenizer.chat_template)
    return processor, Qwen3VLModel(config)


def _qwen2_5_vl(size: BaseSize, texts: list[str]) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2_5_VLProcessor

    tokenizer = _tokenizer(size, texts, QWEN_TOKENS)
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


def _internvl(size: BaseSize, texts: list[str]) -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLModel,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    tokenizer = _tokenizer(size, texts, INTERNVL_TOKENS)
    side = size.patch * 8
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
        image_seq_length=16,
        tie_word_embeddings=True,
    )
    pixels = {"height": side, "width": side}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=pixels, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        InternVLVideoProcessor(size=pixels),
        image_seq_length=16,
        chat_template=tokenizer.chat_template,
    )
    return processor, InternVLModel(config)


def _llava(size: BaseSize, texts: list[str]) -> tuple[Any, Any]:
    from transformers import LlavaConfig, LlavaModel, LlavaProcessor, SiglipImageProcessor

    tokenizer = _tokenizer(size, texts, LLAVA_TOKENS)
    side = size.patch * 8
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
        image_seq_length=64,
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
