"""The training objective: pure functions of margins.

margin d = reward(chosen) - reward(rejected) of the main branch, proxy margin d_t of the text-only proxy; (pairs,),
float32. Each weighting maps the two, detached, to a weight for each pair.

    standard         1
    sfc              (L_t + eps/2) / (L + L_t + eps)                 Li et al., ICML 2025, equation of the
                                                                     shortcut-failure coefficient
    proxy_balanced   sigmoid(-d_t)^exponent / its batch mean         importance weighting to the distribution on which
                                                                     text says nothing about the label (docs/method.md)
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

EPSILON = 1e-7
Weighting = Callable[[Tensor, Tensor, float], Tensor]


def bradley_terry(margin: Tensor) -> Tensor:
    """-log sigmoid(margin) for each pair; finite for any margin."""
    return softplus(-margin)


def sfc_weight(margin: Tensor, proxy_margin: Tensor, exponent: float = 1.0) -> Tensor:
    """Shortcut-failure coefficient in [0, 1]: high where the proxy fails. 0.5 where both losses vanish."""
    loss, proxy_loss = bradley_terry(margin), bradley_terry(proxy_margin)
    return ((proxy_loss + EPSILON / 2) / (loss + proxy_loss + EPSILON)) ** exponent


def proxy_balanced_weight(margin: Tensor, proxy_margin: Tensor, exponent: float = 1.0) -> Tensor:
    """The proxy's probability of ranking the pair wrongly, to the `exponent`, with batch mean 1."""
    probability = torch.sigmoid(-proxy_margin) ** exponent
    return probability / probability.mean().clamp_min(torch.finfo(probability.dtype).tiny)


def standard_weight(margin: Tensor, proxy_margin: Tensor, exponent: float = 1.0) -> Tensor:
    """Every pair counts the same."""
    return torch.ones_like(margin)


WEIGHTINGS: dict[str, Weighting] = {
    "standard": standard_weight,
    "sfc": sfc_weight,
    "proxy_balanced": proxy_balanced_weight,
}


def weighted_loss(margin: Tensor, weight: Tensor, pairs: Tensor | int) -> Tensor:
    """sum(weight * L) / pairs: the mean over all `pairs` of an optimiser step, of which this batch may be a part.

    No gradient flows through the weight.
    """
    return (weight.detach() * bradley_terry(margin)).sum() / pairs
