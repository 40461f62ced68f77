"""What a reward model gets right: pair accuracy, top-1, and the differences between models, with 95% intervals.

Pure functions of scores; scores[i][j] is the reward of response j of record i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beholder.checkpoint import Calibration
from beholder_training.data import Record

Scores = Sequence[Sequence[float]]
_Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with the half-width of its 95% interval (normal approximation over `count` values)."""

    mean: float
    half_width: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


def pair_outcomes(records: Sequence[Record], scores: Scores) -> NDArray[np.float64]:
    """One value a pair, in record order: 1 where the chosen response scores higher, 0.5 at a tie, 0 otherwise."""
    margins = [
        rewards[chosen] - rewards[rejected]
        for record, rewards in zip(records, scores, strict=True)
        for chosen, rejected in record.pairs()
    ]
    return (np.sign(margins) + 1) / 2


def estimate(values: NDArray[np.float64]) -> Estimate:
    """Mean and 95% interval of independent values."""
    if len(values) == 0:
        raise ValueError("no pairs to evaluate: every record is a tie")
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), _Z95 * spread / len(values) ** 0.5, len(values))


def paired_difference(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Estimate:
    """Mean of ours - theirs over the same pairs."""
    return estimate(ours - theirs)


def top1(records: Sequence[Record], scores: Scores) -> NDArray[np.float64]:
    """For each record 1 where a response of the greatest quality scores highest."""
    hits = [
        record.qualities[int(np.argmax(rewards))] == max(record.qualities)
        for record, rewards in zip(records, scores, strict=True)
    ]
    return np.asarray(hits, dtype=np.float64)


def chance_top1(records: Sequence[Record]) -> float:
    """Top-1 of a random ranking."""
    return float(np.mean([record.qualities.count(max(record.qualities)) / len(record.qualities) for record in records]))


def calibrate(scores: Scores) -> Calibration:
    """Mean, deviation and quantiles over all responses."""
    flat = np.asarray([reward for rewards in scores for reward in rewards])
    levels = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    quantiles = {str(level): float(np.quantile(flat, level)) for level in levels}
    return Calibration(mean=float(flat.mean()), deviation=float(flat.std()), quantiles=quantiles)
