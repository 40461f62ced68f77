"""Tiny vision-language bases with random weights, made offline: all four architectures, and one for benchmarks.

A base is a Hugging Face folder (config, weights, tokenizer, chat template, processor) just as a downloaded one.
Every matrix is drawn with one standard deviation that keeps activations well conditioned, so that float32 and bf16
scores can be compared.
"""

import math
from collections.abc import Iterable
from pathlib import Path

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
    if architecture not in MAKERS:
        raise CheckpointError(f"architecture {architecture!r} is unknown: use one of {', '.join(MAKERS)}")
    torch.manual_seed(seed)
    processor, model = MAKERS[architecture](size, list(texts or world_texts()))
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
