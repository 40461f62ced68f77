"""Pure functions on rewards: calibration and ranking."""

from collections.abc import Sequence
from math import isfinite
from statistics import fmean, pstdev

from beholder.checkpoint import Calibration
from beholder.errors import CheckpointError


def normalize(scores: Sequence[float], calibration: Calibration) -> list[float]:
    """Rewards in standard deviations from the mean of held-out responses."""
    return [(score - calibration.mean) / calibration.deviation for score in scores]


def within_prompt_spread(scores: Sequence[Sequence[float]]) -> float:
    """Mean over prompts of the standard deviation of a prompt's rewards: the scale on which responses differ.

    Raises CheckpointError where it is none: a reward is not finite, or no two of a prompt differ.
    """
    wrong = [rewards for rewards in scores if not all(map(isfinite, rewards))]
    spreads = [] if wrong else [pstdev(rewards) for rewards in scores if len(rewards) > 1]
    if not any(spreads):
        shown = ", ".join(map(str, (wrong or scores)[0]))
        raise CheckpointError(f"the rewards of a prompt's responses are not different numbers, and rank none: {shown}")
    return fmean(spreads)


def best_first(scores: Sequence[float]) -> list[int]:
    """Indices from the highest score to the lowest; ties keep their order."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def ranks(order: Sequence[int]) -> list[int]:
    """The inverse of `best_first`: the rank of each index, 0 is best."""
    places = [0] * len(order)
    for rank, index in enumerate(order):
        places[index] = rank
    return places
