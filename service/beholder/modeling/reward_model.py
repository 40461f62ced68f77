"""A backbone, mostly vision-language, with a scalar reward head, forwarded packed.

The reward of a response is the head's output at its last token, in float32 whatever the backbone's dtype.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from beholder.errors import CheckpointError
from beholder.modeling.architectures import Architecture, architecture_of
from beholder.modeling.last_layer import read_at
from beholder.modeling.packed_attention import NAME, Layout, layout_mask
from beholder.modeling.packing import IMAGE_TYPE, PADDING, PREFIX, attention_mask
from beholder.modeling.picture_attention import prepare_tower


class RewardModel(nn.Module):
    """`backbone` is the Hugging Face base model (without language-model head) of a supported architecture."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.architecture: Architecture = architecture_of(backbone.config)
        self.backbone = backbone
        hidden = backbone.config.get_text_config().hidden_size
        self.score = nn.Linear(hidden, 1, bias=False, dtype=torch.float32)
        nn.init.normal_(self.score.weight, std=1 / (hidden + 1))  # method.md, published set-up

    @classmethod
    def from_base(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "RewardModel":
        """A pretrained base with a new head. Raises CheckpointError where it is unsupported or incomplete."""
        config = _read_config(folder)
        if not (architecture := architecture_of(config)).reads_images:
            raise CheckpointError(f"{folder} is a {architecture.model_type}, which sees no picture: train another base")
        require_full_attention(config, folder)
        return cls(_load_backbone(folder, dtype, renames={}))

    @classmethod
    def from_checkpoint(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "RewardModel":
        """The model that an exported checkpoint holds; its head stays in float32. Raises CheckpointError."""
        architecture = architecture_of(_read_config(folder))
        renames = {f"^{re.escape(stored)}": own for own, stored in architecture.renames}
        model = cls(_load_backbone(folder, dtype, renames))
        weight, bias = (_read_weight(folder, key) for key in (architecture.head_key, architecture.head_bias_key))
        if weight is None:
            raise CheckpointError(f"{folder} has no weight {architecture.head_key}")
        model.score.weight = nn.Parameter(weight.float())
        if bias is not None:  # of an adopted model; training makes none, it changes no preference
            model.score.bias = nn.Parameter(bias.float())
        return model.eval()

    @property
    def vision(self) -> nn.Module:
        """The vision tower. Only of an architecture that reads images."""
        tower: nn.Module = getattr(self.backbone, self.architecture.vision)
        return tower

    @property
    def projectors(self) -> list[nn.Module]:
        """What takes the tower's features to the language model's width; Qwen's are parts of the tower."""
        return [self.backbone.get_submodule(name) for name in self.architecture.projectors]

    def forward(
        self,
        input_ids: Tensor,
        segments: Tensor,
        offsets: Tensor,
        mm_token_type_ids: Tensor,
        rows: Tensor,
        columns: Tensor,
        pictures: dict[str, Tensor],
        layout: Layout,
    ) -> Tensor:
        """Rewards (responses,), float32, of a batch that `inputs.collate` made."""
        with nullcontext() if torch.is_grad_enabled() else read_at(self.backbone, rows, columns):
            output = self.backbone(
                input_ids=input_ids,
                attention_mask=_mask(segments, layout, packed=len(rows) > len(segments)),
                position_ids=self._positions(segments, offsets, mm_token_type_ids, pictures),
                use_cache=False,
                **pictures,
            )
        last: Tensor = output.last_hidden_state[rows, columns]
        return self._head(last)

    def _head(self, last: Tensor) -> Tensor:
        """(responses, hidden) -> (responses,), in float32 under autocast and under sharding in bf16 too."""
        with torch.autocast(last.device.type, enabled=False):
            rewards = linear(last.float(), *[parameter.float() for parameter in self.score.parameters()])
        return rewards.squeeze(-1)

    def _positions(self, segments: Tensor, offsets: Tensor, types: Tensor, pictures: dict[str, Tensor]) -> Tensor:
        """Position ids as if every response stood alone: (batch, length), or (3, batch, length) for mRoPE."""
        if not hasattr(self.backbone, "get_rope_index"):
            return offsets
        if "image_grid_thw" not in pictures:
            return offsets.expand(3, -1, -1)
        merge_size = self.backbone.config.vision_config.spatial_merge_size
        return mrope_positions(segments, offsets, types, pictures["image_grid_thw"], merge_size)


def _mask(segments: Tensor, layout: Layout, *, packed: bool) -> Tensor:
    """Rows of one response each need no mask but padding's, which any architecture takes."""
    if not packed:
        return (segments != PADDING).long()
    return layout_mask(segments, layout) if layout else attention_mask(segments)


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: {error}") from None


def require_full_attention(config: Any, folder: Path) -> None:
    """Packing, and a reward over the whole conversation, need every token to see all before it.

    Raises CheckpointError for the Hugging Face `config` of a model in `folder` that looks through a sliding window.
    """
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or []
    if "sliding_attention" in kinds or (not kinds and getattr(text, "sliding_window", None)):
        raise CheckpointError(f"{folder} attends within a sliding window, which Beholder does not compute")


def _load_backbone(folder: Path, dtype: torch.dtype, renames: dict[str, str]) -> Any:
    """The base model; `renames` maps patterns of stored names to its own.

    Raises CheckpointError when a weight is missing: Hugging Face would draw it at random and only warn.
    """
    from transformers import AutoModel

    with quiet_transformers():  # it would report the heads, which are not the backbone's, as unexpected
        backbone, found = AutoModel.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            trust_remote_code=False,
            key_mapping=renames,
            output_loading_info=True,
        )
    if missing := sorted(found["missing_keys"]) + sorted(found["mismatched_keys"]):
        raise CheckpointError(f"{folder} lacks {len(missing)} weights of the model, {missing[0]} first")
    prepare_backbone(backbone)
    keep_float32_exact()
    return backbone


def prepare_backbone(backbone: Any) -> None:
    """Let a base model of Hugging Face compute as `packed_attention` and `picture_attention` say."""
    backbone.config.get_text_config()._attn_implementation = NAME
    if vision := architecture_of(backbone.config).vision:
        prepare_tower(getattr(backbone, vision))


def keep_float32_exact() -> None:
    """For the whole process: cuDNN would round the inputs of float32 convolutions to TF32. torch's matrix products do
    not round theirs unless they are told to."""
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No warnings of transformers inside the block."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _read_weight(folder: Path, key: str) -> Tensor | None:
    """One weight of a checkpoint, whichever file it is in; None where it has none."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            if key in weights.keys():  # noqa: SIM118 (not a mapping)
                tensor: Tensor = weights.get_tensor(key)
                return tensor
    return None


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast in place. Buffers stay in float32: rounding the rotary frequencies would move every position."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def mrope_positions(segments: Tensor, offsets: Tensor, types: Tensor, grid: Tensor, merge_size: int) -> Tensor:
    """(3, batch, length): time, height and width of each token, as the backbone's own `get_rope_index` numbers them.

    grid: (images, 3), patches of each image in order; `merge_size` squared of them become a token. A text token takes
    one position in all three dimensions, an image as many as its longer side has tokens. Images stand in the prefix,
    and each response goes on from its end.
    """
    in_prefix = segments == PREFIX
    is_image = (types == IMAGE_TYPE) & in_prefix
    height, width = (grid[:, 1:] // merge_size).unbind(1)
    tokens = height * width
    within = torch.arange(int(tokens.sum()), device=grid.device) - (tokens.cumsum(0) - tokens).repeat_interleave(tokens)
    columns = width.repeat_interleave(tokens)
    steps = (in_prefix & ~is_image).long()
    steps[is_image] = torch.where(
        within == (tokens - 1).repeat_interleave(tokens), torch.maximum(height, width).repeat_interleave(tokens), 0
    )
    start = steps.cumsum(1) - steps
    positions = start.repeat(3, 1, 1)
    positions[1][is_image] += within // columns
    positions[2][is_image] += within % columns
    following = steps.sum(1, keepdim=True) + offsets - in_prefix.sum(1, keepdim=True)
    following = following.masked_fill(segments == PADDING, 0)
    return torch.where(in_prefix, positions, following)
