"""The scalar reward head, under any of the names that trainers give it.

    score                 transformers' XForSequenceClassification, TRL's RewardTrainer, OpenRLHF
    v_head.summary        TRL's value-head models, LLaMA-Factory, Skywork-VL-Reward
    v_head, value_head, reward_head, rm_head, score_head, classifier

In a file of its own (value_head.safetensors) it may be `summary` alone. It is one linear map: a head of several layers
has no place in a stock vLLM class and is refused. TRL's value head has a bias; vLLM's classes hold one too, so it is
kept: a constant changes no preference, yet the served score must be the trained score.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from beholder.adopting.source import Source, Weights, listed, read_weights
from beholder.errors import CheckpointError

_PREFIX = r"(?:module\.|pretrained_model\.|model\.|language_model\.)*"
_NAMES = "score|v_head|value_head|reward_head|rm_head|score_head|classifier"
_HEAD = re.compile(rf"{_PREFIX}(?:(?:{_NAMES})(?:\.summary)?|summary)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Head:
    """weight: (1, hidden); bias: (1,), None where there is none or it is zero. Both float32."""

    weight: Tensor
    bias: Tensor | None


def is_head(name: str) -> bool:
    return _HEAD.fullmatch(name) is not None


def read_head(source: Source, in_model: Weights, hidden: int) -> Head:
    """The head from its own file, or from those weights of the model that `is_head`. Raises CheckpointError."""
    apart = read_weights(source.head_file) if source.head_file else {}
    if unknown := [name for name in apart if not is_head(name)]:
        raise CheckpointError(f"{source.head_file} has weights that belong to no linear head: {listed(unknown)}")
    # A file that was asked for is the head; what the model has besides it is another's (a PPO policy's value head).
    tensors = dict(apart) if source.explicit_head else {**in_model, **apart}
    weight = _the_one(tensors, "weight")
    bias = _the_one(tensors, "bias")
    if weight is None:
        raise CheckpointError(
            f"{source.folder} has no reward head (score.weight, v_head.summary.weight, value_head.safetensors, ...): "
            "is it a base model? Name the file that holds it with --head-file"
        )
    return _checked(*weight, bias, hidden)


def _the_one(tensors: Weights, kind: str) -> tuple[str, Tensor] | None:
    found = {name: tensor for name, tensor in tensors.items() if name.endswith(kind)}
    distinct = _distinct(found.values())
    if len(distinct) > 1:
        raise CheckpointError(f"{len(distinct)} heads differ: {listed(found)}: name the one to serve with --head-file")
    return next(iter(found.items()), None)


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    distinct: list[Tensor] = []
    for tensor in tensors:
        if not any(tensor.shape == other.shape and torch.equal(tensor, other) for other in distinct):
            distinct.append(tensor)
    return distinct


def _checked(name: str, weight: Tensor, bias: tuple[str, Tensor] | None, hidden: int) -> Head:
    if weight.shape != (1, hidden):
        raise CheckpointError(f"the head {name} has shape {tuple(weight.shape)}; a reward model's is (1, {hidden})")
    if bias is None:
        return Head(weight.float(), None)
    if bias[1].shape != (1,):
        raise CheckpointError(f"the head's {bias[0]} has shape {tuple(bias[1].shape)}; a reward model's is (1,)")
    return Head(weight.float(), bias[1].float() if bias[1].any() else None)
