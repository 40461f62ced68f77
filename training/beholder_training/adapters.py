"""LoRA on the language model through peft, and its merge into the weights before export.

The reward head and the projector train as they are; adapters stand on every linear layer of the language model.
"""

from typing import Any

from torch import nn

from beholder.errors import DataError
from beholder.modeling.reward_model import RewardModel


def add_adapters(model: RewardModel, rank: int, alpha: int, dropout: float) -> None:
    """Freeze the language model and put adapters of `rank` on its linear layers, in place."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise DataError("lora_rank needs peft: pip install '.[training]' in Beholder's checkout") from None
    language: Any = model.backbone.get_submodule("language_model")
    linear = [name for name, module in language.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=linear)
    language.requires_grad_(False)
    inject_adapter_in_model(config, language)
    for name, parameter in language.named_parameters():
        parameter.requires_grad_("lora_" in name)
    for module in (*model.projectors, model.score):
        module.requires_grad_(True)


def merge_adapters(model: RewardModel) -> None:
    """Add every adapter to the weights that it stands on and take it away, in place."""
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        layer: Any = module
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    model.requires_grad_(True)
