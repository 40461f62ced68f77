"""Which stored weight becomes which: complete, or refused with the names that are missing and unknown."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from beholder.adopting.heads import Head, is_head, read_head
from beholder.adopting.internvl_chat import InternVLChat
from beholder.adopting.layouts import HuggingFace, Layout, Move
from beholder.adopting.source import Source, listed, read_shapes, read_weights
from beholder.checkpoint import Dtype
from beholder.error_lines import first_line
from beholder.errors import CheckpointError
from beholder.modeling.architectures import Architecture, architecture_of
from beholder.modeling.reward_model import require_full_attention

_UNUSED = re.compile(
    # The head over the vocabulary and what transformers computes anew: no reward depends on them.
    r"(.*\.)?lm_head\.weight|language_model\.output\.weight|.*\.rotary_emb\.inv_freq|.*\.position_ids"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """`moves` are those of each weight file, by stored name; together they fill the backbone of `config` exactly."""

    layout: Layout
    config: Any
    architecture: Architecture
    moves: dict[Path, dict[str, list[Move]]]
    head: Head
    dtype: Dtype


def make_plan(source: Source) -> Plan:
    """Detect the layout and map every weight. Raises CheckpointError."""
    layout: Layout = InternVLChat() if InternVLChat.matches(source.config) else HuggingFace()
    config = layout.read_config(source)
    require_full_attention(config, source.folder)
    stored = {file: read_shapes(file) for file in source.files}
    expected = _expected(config)
    moves: dict[Path, dict[str, list[Move]]] = {}
    unmapped: dict[str, Path] = {}
    for file, tensors in stored.items():
        found = {name: layout.moves(name, expected) for name in tensors}
        moves[file] = {name: parts for name, parts in found.items() if parts}
        unmapped |= {name: file for name, parts in found.items() if not parts}
    _check_complete(source, moves, stored, expected, [name for name in unmapped if not _has_place(name)])
    in_model = {name: read_weights(file, [name])[name] for name, file in unmapped.items() if is_head(name)}
    head = read_head(source, in_model, config.get_text_config().hidden_size)
    dtype = _dtype([stored[file][name] for file, names in moves.items() for name in names])
    return Plan(layout, config, architecture_of(config), moves, head, dtype)


def _has_place(name: str) -> bool:
    return is_head(name) or _UNUSED.fullmatch(name) is not None


def _expected(config: Any) -> dict[str, Tensor]:
    """The backbone's weights, without memory. Raises CheckpointError for a config that no model can be made of."""
    from transformers import AutoModel

    try:
        with torch.device("meta"):
            state: dict[str, Tensor] = AutoModel.from_config(config, trust_remote_code=False).state_dict()
    except Exception as error:
        # Whatever a model's constructor stumbles over.
        raise CheckpointError(f"config.json describes no {config.model_type}: {first_line(error)}") from None
    return state


def _check_complete(
    source: Source,
    moves: Mapping[Path, Mapping[str, list[Move]]],
    stored: Mapping[Path, Mapping[str, Tensor]],
    expected: Mapping[str, Tensor],
    unknown: list[str],
) -> None:
    """Every expected weight is filled once and in its shape, and nothing is left over."""
    filled: Counter[str] = Counter()
    misshapen = []
    for file, names in moves.items():
        for name, parts in names.items():
            for move in parts:
                filled[move.target] += 1
                shape = tuple(move.take(stored[file][name]).shape)
                if shape != tuple(expected[move.target].shape):
                    misshapen.append(f"{name} {shape} for {tuple(expected[move.target].shape)}")
    troubles = {
        "missing": [name for name in expected if name not in filled],
        "unknown": unknown,
        "of another shape": misshapen,
        "stored twice": [name for name, count in filled.items() if count > 1],
    }
    found = [f"{len(names)} {kind}: {listed(names)}" for kind, names in troubles.items() if names]
    if found:
        model = f"{source.config.get('model_type')} ({len(expected)} weights)"
        raise CheckpointError(f"{source.folder} does not map onto the model {model}: {'; '.join(found)}")


def _dtype(tensors: list[Tensor]) -> Dtype:
    """The weights' own type; float32, which holds all exactly, where they differ."""
    names = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
    if not names <= set(get_args(Dtype)):
        raise CheckpointError(f"the weights are {listed(names)}: adopt the full-precision model, vLLM can quantize it")
    return next((name for name in get_args(Dtype) if names == {name}), "float32")
