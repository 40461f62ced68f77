"""Main branch and proxy as the one module that is trained; they share nothing but the batch.

Sharded (FSDP2), all processes gather weights and reduce gradients in the same order, whatever each has in its batch:
also where one has pictures and another, for the moment, only text.
"""

from typing import Any

from torch import Tensor, nn

from beholder.modeling.reward_model import RewardModel
from beholder_training.branch import Branch

NAMES = ("main", "proxy")


class TwoBranches(nn.Module):
    """Main branch and proxy (or None)."""

    def __init__(self, main: Branch, proxy: Branch | None, freeze_vision: bool) -> None:
        super().__init__()
        self.main = main.model
        self.proxy = proxy.model if proxy else None
        present = [model for model in (self.main, self.proxy) if model is not None]
        self.seeing = [branch.model for branch in (main, proxy) if branch is not None and branch.sees_images]
        self.frozen = [model.vision for model in present if freeze_vision]
        for model in present:
            if freeze_vision:
                freeze_tower(model)
        for branch in (main, proxy):
            if branch is not None and not branch.sees_images:
                for parameter in _picture_parameters(branch.model):
                    parameter.requires_grad_(False)  # never called: keep it out of optimiser and clip
        # What accelerate shards one by one under FSDP2. The tower, which not every batch calls, is not among them:
        # then it is gathered with the whole, by every forward.
        self._no_split_modules = sorted({name for model in present for name in _text_layers(model)})

    def train(self, mode: bool = True) -> "TwoBranches":
        """A frozen tower stays in eval mode, or its dropout would show chosen and rejected other features."""
        super().train(mode)
        for tower in self.frozen:
            tower.eval()
        return self

    def forward(
        self, main: dict[str, Any] | None, proxy: dict[str, Any] | None, ties_pictures: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """Rewards (responses,) of each branch whose batch is given.

        With `ties_pictures`, what only pictures reach has a gradient in a branch that sees them, if one of zeros, also
        without a picture in the batch.
        """
        return self._rewards(self.main, main, ties_pictures), self._rewards(self.proxy, proxy, ties_pictures)

    def _rewards(self, model: RewardModel | None, batch: dict[str, Any] | None, ties_pictures: bool) -> Tensor | None:
        if model is None or batch is None:
            return None
        rewards: Tensor = model(**batch)
        if ties_pictures and model in self.seeing:
            rewards = rewards + 0.0 * sum(parameter.sum() for parameter in _picture_parameters(model))
        return rewards


def freeze_tower(model: RewardModel) -> None:
    """Take the vision tower out of training, but not a projector inside it."""
    model.vision.requires_grad_(False)
    for projector in model.projectors:
        projector.requires_grad_(True)


def _text_layers(model: RewardModel) -> set[str]:
    """The classes of the language model's layers, which every forward calls."""
    inside = {type(module).__name__ for module in model.backbone.get_submodule("language_model").modules()}
    return inside & set(model.backbone._no_split_modules or ())


def _picture_parameters(model: RewardModel) -> list[nn.Parameter]:
    """What trains in tower and projector."""
    named = model.backbone.named_parameters()
    return [value for name, value in named if value.requires_grad and not name.startswith("language_model.")]


def branch_parameters(model: Any, branch: str) -> list[nn.Parameter]:
    """The trainable parameters of "main" or "proxy"; `model` may be wrapped."""
    module = getattr(getattr(model, "module", model), branch)
    return [parameter for parameter in module.parameters() if parameter.requires_grad] if module is not None else []
