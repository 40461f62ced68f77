"""Pure functions on rewards: calibration and ranking."""

from collections.abc import Sequence
from statistics import fmean, pstdev

from beholder.checkpoint import Calibration


def normalize(scores: Sequence[float], calibration: Calibration) -> list[float]:
    """Rewards in standard deviations from the mean of held-out responses."""
    return [(score - calibration.mean) / calibration.deviation for score in scores]


def within_prompt_spread(scores: Sequence[Sequence[float]]) -> float:
    """Mean over prompts of the standard deviation of a prompt's rewards: the scale on which responses differ."""
    spreads = [pstdev(rewards) for rewards in scores if len(rewards) > 1]
    return fmean(spreads) if spreads else 0.0


def best_first(scores: Sequence[float]) -> list[int]:
    """Indices from the highest score to the lowest; ties keep their order."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def ranks(order: Sequence[int]) -> list[int]:
    """The inverse of `best_first`: the rank of each index, 0 is best."""
    places = [0] * len(order)
    for rank, index in enumerate(order):
        places[index] = rank
    return places
