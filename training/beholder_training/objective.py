"""What one optimiser step minimises: the registry's parts put together as a configuration says.

main    sum over pairs of w * loss(d, g) + centring * (r+ + r-)^2, divided by the pairs of the whole step
proxy   sum over pairs of L_t, divided likewise
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from beholder_training.config import TrainingConfig
from beholder_training.data import Record
from beholder_training.losses import PAIR_LOSSES, WEIGHTINGS, GapSettings, PairLoss, Weighting, centring_penalty

ENOUGH_PAIRS = 32  # with an ideal proxy they leave 7% of the log odds of a cue in 90% of the pairs (docs/method.md)


@dataclass(frozen=True, slots=True)
class Objective:
    """Pure: the same margins give the same loss on any device, in any split of the step."""

    weighting: Weighting
    exponent: float
    pair_loss: PairLoss
    gap: GapSettings
    centring: float
    seed: int

    @classmethod
    def from_config(cls, config: TrainingConfig) -> "Objective":
        gap = GapSettings(config.gap_strength, config.gap_rate, config.label_smoothing)
        weighting, pair_loss = WEIGHTINGS[config.algorithm], PAIR_LOSSES[config.pair_loss]
        return cls(weighting, config.exponent, pair_loss, gap, config.centring, config.seed)

    def weights(self, margin: Tensor, proxy_margin: Tensor | None, ids: Tensor, step: int) -> Tensor:
        """The weight of each pair (pairs,), without gradient; `ids` fix an order of the step's pairs."""
        margin = margin.detach()
        reference = torch.zeros_like(margin) if proxy_margin is None else proxy_margin.detach()
        order = torch.argsort(ids)
        weights = torch.empty_like(margin)
        weights[order] = self.weighting(margin[order], reference[order], self.exponent, hash((self.seed, step)) % 2**31)
        return weights

    def main_terms(self, rewards: Tensor, pairs: Tensor, gaps: Tensor, weights: Tensor) -> Tensor:
        """Each pair's part of the main branch's sum: (pairs,). rewards: (responses,); pairs: (pairs, 2)."""
        chosen, rejected = rewards[pairs[:, 0]], rewards[pairs[:, 1]]
        terms = weights * self.pair_loss(chosen - rejected, gaps, self.gap)
        return terms + self.centring * centring_penalty(chosen, rejected) if self.centring else terms


def margins(rewards: Tensor, pairs: Tensor) -> Tensor:
    """reward(chosen) - reward(rejected) of each pair: (pairs,)."""
    return rewards[pairs[:, 0]] - rewards[pairs[:, 1]]


def small_step_warning(config: TrainingConfig, records: Sequence[Record], processes: int) -> str:
    """What to do where an optimiser step has too few pairs for weights that are relative to them; else empty."""
    pairs = config.step_prompts * processes * sum(len(record.pairs()) for record in records) / len(records)
    if not WEIGHTINGS[config.algorithm].over_step or pairs >= ENOUGH_PAIRS:
        return ""
    accumulation = math.ceil(config.accumulation * ENOUGH_PAIRS / pairs)
    return (
        f"a step has about {pairs:.3g} pairs: {config.algorithm} weighs the pairs of a step against each other, "
        f"which over fewer than {ENOUGH_PAIRS} comes close to weighing them alike, as algorithm=standard does: "
        f"set accumulation={accumulation}"
    )
