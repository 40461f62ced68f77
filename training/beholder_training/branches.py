"""Main branch and proxy as the one module that is trained; they share nothing but the batch."""

from typing import Any

from torch import Tensor, nn

from beholder_training.branch import Branch

NAMES = ("main", "proxy")


class TwoBranches(nn.Module):
    """Main branch and proxy (or None)."""

    def __init__(self, main: Branch, proxy: Branch | None, freeze_vision: bool) -> None:
        super().__init__()
        self.main = main.model
        self.proxy = proxy.model if proxy else None
        present = [model for model in (self.main, self.proxy) if model is not None]
        self.frozen = [model.vision for model in present if freeze_vision]
        for tower in self.frozen:
            tower.requires_grad_(False)
        if self.proxy is not None and proxy is not None and not proxy.sees_images:
            self.proxy.vision.requires_grad_(False)  # never called: keep it out of optimiser and clip
        # What accelerate shards one by one under FSDP2.
        self._no_split_modules = sorted({name for model in present for name in model.backbone._no_split_modules or ()})

    def train(self, mode: bool = True) -> "TwoBranches":
        """A frozen tower stays in eval mode, or its dropout would show chosen and rejected other features."""
        super().train(mode)
        for tower in self.frozen:
            tower.eval()
        return self

    def forward(self, main: dict[str, Any] | None, proxy: dict[str, Any] | None) -> tuple[Tensor | None, Tensor | None]:
        """Rewards (responses,) of each branch whose batch is given."""
        rewards = self.main(**main) if main is not None else None
        proxy_rewards = self.proxy(**proxy) if proxy is not None and self.proxy is not None else None
        return rewards, proxy_rewards


def branch_parameters(model: Any, branch: str) -> list[nn.Parameter]:
    """The trainable parameters of "main" or "proxy"; `model` may be wrapped."""
    module = getattr(getattr(model, "module", model), branch)
    return [parameter for parameter in module.parameters() if parameter.requires_grad] if module is not None else []
