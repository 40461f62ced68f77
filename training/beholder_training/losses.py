"""The training objective's parts, in one registry: pure functions of margins.

margin d = reward(chosen) - reward(rejected) of the main branch, proxy margin d_t of the text-only proxy, gap g > 0 the
difference of the two responses' ratings (1 where the data only says which is better); each (pairs,), float32.
L = -log sigmoid(d), L_t = -log sigmoid(d_t).

`WEIGHTINGS` map the two margins, detached, to a weight for each pair; `PAIR_LOSSES` a margin and its gap to the pair's
loss. A weighting whose scope is the step uses a mean or an order over all pairs of an optimiser step, and must be given
all of them at once, on whatever micro-batches and processes they are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

EPSILON = 1e-7


@dataclass(frozen=True, slots=True)
class Weighting:
    """A weighting and what it needs. Calling it gives the weights (pairs,).

    reads_proxy, reads_main: whether the weight depends on d_t, and on d.
    over_step: whether it depends on the other pairs of the optimiser step.
    """

    function: Callable[[Tensor, Tensor, float, int], Tensor]
    reads_proxy: bool = True
    reads_main: bool = True
    over_step: bool = False

    def __call__(self, margin: Tensor, proxy_margin: Tensor, exponent: float = 1.0, seed: int = 0) -> Tensor:
        return self.function(margin, proxy_margin, exponent, seed)


def standard_weight(margin: Tensor, proxy_margin: Tensor, exponent: float = 1.0, seed: int = 0) -> Tensor:
    """w = 1: every pair counts the same (Bradley and Terry, 1952; Stiennon et al., NeurIPS 2020)."""
    return torch.ones_like(margin)


def constant_weight(margin: Tensor, proxy_margin: Tensor, exponent: float = 1.0, seed: int = 0) -> Tensor:
    """w = 0.5^exponent: control for SFC, whose weights start near 0.5 (docs/method.md)."""
    return torch.full_like(margin, 0.5) ** exponent


def sfc_weight(margin: Tensor, proxy_margin: Tensor, exponent: float = 1.0, seed: int = 0) -> Tensor:
    """w = ((L_t + eps/2) / (L + L_t + eps))^exponent, in [0, 1]: high where the proxy fails, 0.5 where both vanish.

    The shortcut-failure coefficient of Li et al., ICML 2025 (arXiv 2503.03122).
    """
    loss, proxy_loss = bradley_terry(margin), bradley_terry(proxy_margin)
    return ((proxy_loss + EPSILON / 2) / (loss + proxy_loss + EPSILON)) ** exponent


def shuffled_sfc_weight(margin: Tensor, proxy_margin: Tensor, exponent: float = 1.0, seed: int = 0) -> Tensor:
    """w = SFC of another pair of the step: control with SFC's distribution of weights and none of its information.

    `seed` draws the permutation; the same pairs in the same order get the same one on any device (docs/method.md).
    """
    order = torch.randperm(len(margin), generator=torch.Generator().manual_seed(seed)).to(margin.device)
    return sfc_weight(margin, proxy_margin, exponent)[order]


def normalised_sfc_weight(margin: Tensor, proxy_margin: Tensor, exponent: float = 1.0, seed: int = 0) -> Tensor:
    """w = SFC / mean(SFC): control in which the weights' mean is 1, as in standard training (docs/method.md)."""
    return _mean_one(sfc_weight(margin, proxy_margin, exponent))


def proxy_balanced_weight(margin: Tensor, proxy_margin: Tensor, exponent: float = 1.0, seed: int = 0) -> Tensor:
    """w = p / mean(p), p = sigmoid(-d_t)^exponent, the proxy's probability of ranking the pair wrongly.

    Importance weighting to the distribution on which text says nothing about the label (docs/method.md).
    """
    return _mean_one(torch.sigmoid(-proxy_margin) ** exponent)


def _mean_one(weight: Tensor) -> Tensor:
    return weight / weight.mean().clamp_min(torch.finfo(weight.dtype).tiny)


WEIGHTINGS: dict[str, Weighting] = {
    "standard": Weighting(standard_weight, reads_proxy=False, reads_main=False),
    "sfc": Weighting(sfc_weight),
    "proxy_balanced": Weighting(proxy_balanced_weight, reads_main=False, over_step=True),
    "constant": Weighting(constant_weight, reads_proxy=False, reads_main=False),
    "sfc_shuffled": Weighting(shuffled_sfc_weight, over_step=True),
    "sfc_normalised": Weighting(normalised_sfc_weight, over_step=True),
}


def smoothed(logit: Tensor, smoothing: float = 0.0) -> Tensor:
    """(1 - s) * -log sigmoid(z) + s * -log sigmoid(-z): the label is taken as wrong with probability s.

    Label smoothing of preferences: Mitchell, "A note on DPO with noisy preferences", 2023; for reward models Wang et
    al., 2024 (arXiv 2401.06080).
    """
    return (1 - smoothing) * softplus(-logit) + smoothing * softplus(logit)


@dataclass(frozen=True, slots=True)
class GapSettings:
    """strength and rate of the losses that use the rating gap; smoothing of all of them."""

    strength: float = 1.0
    rate: float = 0.5
    smoothing: float = 0.0


PairLoss = Callable[[Tensor, Tensor, GapSettings], Tensor]


def bradley_terry(margin: Tensor) -> Tensor:
    """L = -log sigmoid(d) for each pair; finite for any margin (Bradley and Terry, 1952)."""
    return softplus(-margin)


def bradley_terry_loss(margin: Tensor, gap: Tensor, settings: GapSettings = GapSettings()) -> Tensor:
    """-log sigmoid(d), smoothed; the gap plays no part (Bradley and Terry, 1952)."""
    return smoothed(margin, settings.smoothing)


def margin_loss(margin: Tensor, gap: Tensor, settings: GapSettings = GapSettings()) -> Tensor:
    """-log sigmoid(d - strength * g): much better responses must win by more (Llama 2, arXiv 2307.09288)."""
    return smoothed(margin - settings.strength * gap, settings.smoothing)


def scaled_bradley_terry_loss(margin: Tensor, gap: Tensor, settings: GapSettings = GapSettings()) -> Tensor:
    """strength * g * -log sigmoid(d): a pair counts by its gap (HelpSteer2-Preference, arXiv 2410.01257)."""
    return settings.strength * gap * smoothed(margin, settings.smoothing)


def dynamic_scaling_loss(margin: Tensor, gap: Tensor, settings: GapSettings = GapSettings()) -> Tensor:
    """-log sigmoid(b d), b = 1 + strength * (1 - exp(-rate * g)): clear preferences get the steeper sigmoid.

    The dynamic reward scaling of MM-RLHF (arXiv 2502.10391), with the rating gap in place of its reward model's margin.
    """
    return smoothed((1 + settings.strength * (1 - torch.exp(-settings.rate * gap))) * margin, settings.smoothing)


PAIR_LOSSES: dict[str, PairLoss] = {
    "bradley_terry": bradley_terry_loss,
    "margin": margin_loss,
    "scaled_bradley_terry": scaled_bradley_terry_loss,
    "dynamic_scaling": dynamic_scaling_loss,
}


def centring_penalty(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r+ + r-)^2 for each pair: keeps rewards near zero, which the margin alone leaves free.

    Eisenstein et al., "Helping or Herding?", 2023 (arXiv 2312.09244), section on underspecified rewards.
    """
    return (chosen + rejected) ** 2
