"""The last decoder layer, computed where rewards are read.

A reward is read at its response's last token. Of the last layer the other tokens give keys and values alone: their
attention is left out by `packed_attention`, and here what follows attention. Known for Llama's layer, where
`self_attn.o_proj` and `mlp` take each token by itself and are added to what comes in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from beholder.modeling.packed_attention import ONLY_LAST

LLAMAS: Final = {"llama", "mistral", "qwen2", "qwen3", "qwen2_5_vl_text", "qwen3_vl_text"}
"""Text models whose layer is Llama's; vision-language models may have others, which are computed whole."""


@contextmanager
def read_at(backbone: Any, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Inside the block the backbone's hidden states need be right at the tokens (rows, columns) alone.

    For forwards without a gradient: gradient checkpointing would compute them again outside the block.
    """
    if backbone.config.get_text_config().model_type not in LLAMAS:
        yield
        return
    layer = backbone.get_decoder().layers[-1]
    setattr(layer.self_attn, ONLY_LAST, True)
    handles = [handle for module in (layer.self_attn.o_proj, layer.mlp) for handle in _only_at(module, rows, columns)]
    try:
        yield
    finally:
        delattr(layer.self_attn, ONLY_LAST)
        for handle in handles:
            handle.remove()


def _only_at(module: nn.Module, rows: Tensor, columns: Tensor) -> tuple[RemovableHandle, RemovableHandle]:
    """Let `module` compute (batch, length, size) at (rows, columns), and give zeros elsewhere."""
    shape: list[int] = []

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        (states,) = inputs
        shape[:] = states.shape[:2]
        return states[rows, columns]

    def put(_: nn.Module, __: tuple[Tensor, ...], result: Tensor) -> Tensor:
        everywhere = result.new_zeros(*shape, result.shape[-1])
        everywhere[rows, columns] = result
        return everywhere

    return module.register_forward_pre_hook(take), module.register_forward_hook(put)
