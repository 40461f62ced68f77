"""Means and differences with 95% intervals, over independent pairs and over runs with several seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Groups = NDArray[np.int64]
_Z95 = 1.959964
# Two-sided 95% quantiles of Student's t for 1, 2, ... degrees of freedom.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with the half-width of its 95% interval (nan: there is none), over `count` values."""

    mean: float
    half_width: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        return with_interval(f"{self.mean:.3f}", self.half_width)


def with_interval(mean: str, half_width: float | None, digits: int = 3) -> str:
    """`mean` ± `half_width`, as every report shows it; None, as in JSON, and nan are no interval."""
    if half_width is None or math.isnan(half_width):
        return f"{mean} (no interval)"
    return f"{mean} ± {half_width:.{digits}f}"


def estimate(values: Values, groups: Groups | None = None) -> Estimate:
    """Mean and 95% interval (normal approximation).

    `groups` numbers the group of every value, such as the question of a pair: only groups are independent then. Without
    it every value is. One group alone gives no interval.
    """
    if len(values) == 0:
        raise ValueError("no pairs to evaluate: every record is a tie")
    mean = float(values.mean())
    totals = values - mean if groups is None else np.bincount(groups, values - mean)
    count = len(values) if groups is None else len(np.unique(groups))
    error = float(np.sum(totals**2) * count / (count - 1)) ** 0.5 / len(values) if count > 1 else math.nan
    return Estimate(mean, _Z95 * error, len(values))


def paired_difference(ours: Values, theirs: Values, groups: Groups | None = None) -> Estimate:
    """Mean of ours - theirs over the same pairs."""
    return estimate(ours - theirs, groups)


def over_seeds(strata: Sequence[Values]) -> Estimate:
    """The mean over strata of values (seeds, scenes), with an interval for new seeds and new scenes.

    Each stratum (an environment) is given, not drawn, and has at least two seeds and the scenes of every other; the
    values are accuracies, or differences between two runs of the same seed on the same scene. Seeds and scenes are
    crossed, so the variance is the sum of both parts:

        V = mean over strata of var(seed means) / seeds / strata  +  var(scene means over seeds and strata) / scenes

    and the half-width is sqrt(V) times Student's t with sum(seeds - 1) degrees of freedom. A seed mean holds noise of
    the scenes too, so V errs on the wide side.
    """
    if any(len(values) < 2 for values in strata):
        raise ValueError("an interval over seeds needs at least two seeds in every environment")
    if len({values.shape[1] for values in strata}) != 1:
        raise ValueError("the environments must be tested on the same scenes")
    from_seeds = sum(float(values.mean(axis=1).var(ddof=1)) / len(values) for values in strata) / len(strata) ** 2
    scenes = np.mean([values.mean(axis=0) for values in strata], axis=0)
    from_scenes = float(scenes.var(ddof=1)) / len(scenes)
    freedom = sum(len(values) - 1 for values in strata)
    mean = float(np.mean([values.mean() for values in strata]))
    return Estimate(mean, _t95(freedom) * (from_seeds + from_scenes) ** 0.5, sum(len(values) for values in strata))


def _t95(freedom: int) -> float:
    return _T95[freedom - 1] if freedom <= len(_T95) else _Z95 * (1 + 1.2 / freedom)
