"""Vision-language bases with random weights, made offline: tiny ones of all four architectures, larger for benchmarks.

A base is a Hugging Face folder (config, weights, tokenizer, chat template, processor) just as a downloaded one.
Every matrix is drawn with one standard deviation that keeps activations well conditioned, so that float32 and bf16
scores can be compared.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beholder.errors import CheckpointError
from beholder_training.base_architectures import BaseSize, internvl, llava, qwen2_5_vl, qwen3_vl
from beholder_training.base_tokenizers import world_texts

MAKERS = {"qwen3_vl": qwen3_vl, "qwen2_5_vl": qwen2_5_vl, "internvl": internvl, "llava": llava}
TINY = BaseSize()
BENCHMARK_80M = BaseSize(
    hidden=640, layers=12, heads=10, vision_hidden=384, vision_layers=6, vision_heads=6, patch=14, vocabulary=16_384
)
QWEN3_VL_2B = BaseSize(
    hidden=2048, layers=28, heads=16, key_value_heads=8, intermediate=6144, vision_hidden=1024, vision_layers=24,
    vision_heads=16, patch=16, deepstack=(5, 11, 17), vocabulary=151_936,
)  # fmt: skip
"""Qwen/Qwen3-VL-2B-Instruct's."""
INTERNVL3_2B = BaseSize(
    hidden=1536, layers=28, heads=12, key_value_heads=2, intermediate=8960, vision_hidden=1024, vision_layers=24,
    vision_heads=16, patch=14, tile=32, vocabulary=151_674,
)  # fmt: skip
"""OpenGVLab/InternVL3-2B's."""


def make_base(
    folder: Path,
    architecture: str = "qwen3_vl",
    size: BaseSize = TINY,
    seed: int = 0,
    texts: Iterable[str] | None = None,
) -> None:
    """Write a base of `architecture` (a key of ARCHITECTURES) under `folder`."""
    processor, model = draw_base(architecture, size, seed, texts)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def draw_base(
    architecture: str, size: BaseSize = TINY, seed: int = 0, texts: Iterable[str] | None = None
) -> tuple[Any, Any]:
    """Processor and base model, on torch's default device.

    The tokenizer's vocabulary is learned from `texts`, by default those of the built-in world; any text encodes.
    """
    if architecture not in MAKERS:
        raise CheckpointError(f"architecture {architecture!r} is unknown: use one of {', '.join(MAKERS)}")
    torch.manual_seed(seed)
    processor, model = MAKERS[architecture](size, list(texts or world_texts()))
    initialise(model, size.std)
    return processor, model


@torch.no_grad()
def initialise(model: nn.Module, std: float | None) -> None:
    """Draw every matrix anew: Gaussian with `std`, or 1/sqrt(fan-in); embeddings with unit-scale rows."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std or 1 / math.sqrt(module.embedding_dim))
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            fan_in = module.weight.numel() // module.weight.shape[0]
            nn.init.normal_(module.weight, std=std or 1 / math.sqrt(fan_in))
