"""Attention over packed rows that computes the mask's visible part alone.

A packed row of a prefix of P tokens and K responses of S tokens has (P + K S)² entries in its mask, of which at most
P² + K S (P + S) are visible. Here the prefixes attend causally in one call, the responses to their prefix and
themselves in another; the result is the masked attention's, to rounding. Registered with transformers under NAME, it is
plain SDPA wherever no layout comes with the mask.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from beholder.modeling.packing import Packed

NAME: Final = "beholder_packed"
GAIN: Final = 2
"""The packed form is used where it computes this many times fewer entries: gathering and scattering cost too."""
WORTHWHILE: Final = 2**20
"""Entries of the full mask, of all rows, below which the masked form is quicker."""
ONLY_LAST: Final = "beholder_only_last"
"""Set on a decoder layer's attention of which only the responses' last tokens are read (last_layer.py)."""

Layout = dict[str, Tensor]
"""Where tokens stand in the batch's rows, flattened to rows x length:

prefix: (groups, P), the prefixes' tokens, filled up with any index.
suffix: (responses, S), each response's own tokens, filled up likewise.
group: (responses,), the row of each response.
last: (responses,), which of its own tokens is the response's last.
visible: (responses, 1, S, P + S), bool: what a response's token sees of its prefix and itself.
back: (rows x length,), where each token's result stands among those of prefixes and suffixes, one after the other.
Empty: use the mask.
"""


def make_layout(groups: Sequence[Packed], length: int) -> Layout:
    """The layout of rows of `length` tokens; empty where the masked form is as good."""
    spans = [_spans(packed) for packed in groups]
    prefix = max(row[0] for row in spans)
    suffix = max(end - start for row in spans for start, end in pairwise(row))
    responses = sum(len(row) - 1 for row in spans)
    full, visible = len(groups) * length**2, len(groups) * prefix**2 + responses * suffix * (prefix + suffix)
    if full < WORTHWHILE or full < GAIN * visible or not min(row[0] for row in spans):
        return {}
    return _indices(spans, length, prefix, suffix)


def _spans(packed: Packed) -> list[int]:
    """Where the prefix ends, and each response."""
    return [packed.segments.index(1), *(last + 1 for last in packed.last)]


def _indices(spans: list[list[int]], length: int, prefix: int, suffix: int) -> Layout:
    starts = [(row, start, end) for row, places in enumerate(spans) for start, end in pairwise(places)]
    prefixes = torch.zeros(len(spans), prefix, dtype=torch.long)
    suffixes = torch.zeros(len(starts), suffix, dtype=torch.long)
    visible = torch.zeros(len(starts), 1, suffix, prefix + suffix, dtype=torch.bool)
    back = torch.zeros(len(spans) * length, dtype=torch.long)
    for row, places in enumerate(spans):
        tokens = row * length + torch.arange(places[0])
        prefixes[row, : places[0]] = tokens
        back[tokens] = row * prefix + torch.arange(places[0])
    for number, (row, start, end) in enumerate(starts):
        tokens = row * length + torch.arange(start, end)
        suffixes[number, : end - start] = tokens
        back[tokens] = len(spans) * prefix + number * suffix + torch.arange(end - start)
        visible[number, 0, :, : spans[row][0]] = True
    visible[..., prefix:] = torch.ones(suffix, suffix, dtype=torch.bool).tril()
    group = torch.tensor([row for row, _, _ in starts])
    last = torch.tensor([end - start - 1 for _, start, end in starts])
    return {"prefix": prefixes, "suffix": suffixes, "group": group, "last": last, "visible": visible, "back": back}


def layout_mask(segments: Tensor, layout: Layout) -> Tensor:
    """What stands for the mask of rows with a layout. Empty, so that no other attention takes it for one."""
    marked: Any = torch.empty(len(segments), 1, 0, 0, dtype=torch.bool, device=segments.device)
    marked.packed_layout = layout
    mask: Tensor = marked
    return mask


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (rows, heads, length, size) -> (rows, length, heads, size)."""
    layout: Layout | None = getattr(attention_mask, "packed_layout", None)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows, _, length, _ = query.shape
    options.pop("is_causal", None)
    keys, values = _Parts(key, layout), _Parts(value, layout)
    if getattr(module, ONLY_LAST, False):
        return _at_last_tokens(module, query, keys, values, layout, **options), None
    queries = _Parts(query, layout)
    prefix_result, _ = sdpa_attention_forward(
        module, queries.prefix, keys.prefix, values.prefix, None, is_causal=True, **options
    )
    suffix_result, _ = sdpa_attention_forward(
        module, queries.suffix, keys.seen(), values.seen(), layout["visible"], **options
    )
    results = torch.cat([prefix_result.flatten(0, 1), suffix_result.flatten(0, 1)])
    return results.index_select(0, layout["back"]).unflatten(0, (rows, length)), None


def _at_last_tokens(
    module: torch.nn.Module, query: Tensor, keys: "_Parts", values: "_Parts", layout: Layout, **options: Any
) -> Tensor:
    """The result of each response's last token, and zeros elsewhere."""
    response = torch.arange(len(layout["last"]), device=query.device)
    tokens = layout["suffix"][response, layout["last"]]
    flat = query.transpose(1, 2).flatten(0, 1)
    visible = layout["visible"][response, :, layout["last"]].unsqueeze(2)
    result, _ = sdpa_attention_forward(
        module, flat[tokens].unsqueeze(2), keys.seen(), values.seen(), visible, **options
    )  # (responses, 1, heads, size)
    everywhere = result.new_zeros(flat.shape)  # under autocast its dtype is not the query's
    everywhere[tokens] = result.squeeze(1)
    unflattened: Tensor = everywhere.unflatten(0, (len(query), -1))
    return unflattened


class _Parts:
    """Queries, keys or values, apart for prefixes and responses."""

    def __init__(self, states: Tensor, layout: Layout) -> None:
        flat = states.transpose(1, 2).flatten(0, 1)
        self.prefix = _take(flat, layout["prefix"])
        self.suffix = _take(flat, layout["suffix"])
        self._group = layout["group"]

    def seen(self) -> Tensor:
        """(responses, heads, P + S, size): what each response may look at."""
        return torch.cat([self.prefix.index_select(0, self._group), self.suffix], 2)


def _take(states: Tensor, index: Tensor) -> Tensor:
    """(tokens, heads, size), (n, m) -> (n, heads, m, size).

    Not by states[index], whose gradient is sorted on CUDA.
    """
    taken: Tensor = states.index_select(0, index.flatten()).unflatten(0, index.shape)
    return taken.transpose(1, 2)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
