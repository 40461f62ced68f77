"""The vision towers of Qwen's families over many pictures at a time, where transformers goes picture by picture.

Their patches come as one sequence, in which a patch sees its own picture (or window) alone. transformers calls SDPA
once a picture and layer, which for small pictures costs more than the attention itself; here all pictures of one size
are one call. Their first layer, a convolution whose stride is its kernel, is the matrix product that it amounts to.
"""

from itertools import groupby, pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import AttentionInterface

NAME: Final = "beholder_flash_pictures"
"""transformers gives the whole sequence, with `cu_seq_lens_q`, to attention with "flash" in its name."""

_RUNS: Final = "beholder_runs"


def prepare_tower(tower: Any) -> None:
    """Make `tower` as fast as this module says; the names of its weights stay. Nothing where it is of another kind."""
    projection = getattr(getattr(tower, "patch_embed", None), "proj", None)
    if isinstance(projection, nn.Conv3d):
        tower.patch_embed.proj = _PatchProjection(projection)
        tower.config._attn_implementation = NAME


def picture_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, heads, patches, size) -> (1, patches, heads, size).

    cu_seq_lens_q: (pictures + 1,), where each picture begins, and the end.
    """
    runs = _runs(cu_seq_lens_q)
    parts = [
        torch.split(states[0], [length * count for length, count in runs], dim=1) for states in (query, key, value)
    ]
    results = []
    for (length, count), *states in zip(runs, *parts, strict=True):
        queries, keys, values = (part.unflatten(1, (count, length)).transpose(0, 1) for part in states)
        result = scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, scale=scaling)
        results.append(result.transpose(1, 2).flatten(0, 1))
    return torch.cat(results).unsqueeze(0), None


def _runs(starts: Tensor) -> list[tuple[int, int]]:
    """(patches, pictures) of pictures of one size that follow each other; kept on the tensor, since reading it waits
    for the accelerator and every layer gets the same one."""
    runs: list[tuple[int, int]] | None = getattr(starts, _RUNS, None)
    if runs is None:
        lengths = [end - start for start, end in pairwise(starts.tolist())]
        runs = [(length, len(list(same))) for length, same in groupby(lengths)]
        setattr(starts, _RUNS, runs)
    return runs


class _PatchProjection(nn.Module):
    """(patches, channels, frames, height, width) of a patch each -> (patches, features, 1, 1, 1)."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, patches: Tensor) -> Tensor:
        return linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


AttentionInterface.register(NAME, picture_attention)
