"""Calibration and ranking."""

import pytest

from beholder.checkpoint import Calibration
from beholder.rewards import best_first, normalize, ranks


def test_normalized_rewards_are_deviations_from_the_mean() -> None:
    calibration = Calibration(mean=1, deviation=2, quantiles={})
    assert normalize([1, 3, -3], calibration) == [0, 1, -2]


@pytest.mark.parametrize(
    ("scores", "order", "places"),
    [
        ([1.0], [0], [0]),
        ([1.0, 3.0, 2.0], [1, 2, 0], [2, 0, 1]),
        ([2.0, 2.0, 2.0], [0, 1, 2], [0, 1, 2]),
        ([1.0, 2.0, 1.0, 2.0], [1, 3, 0, 2], [2, 0, 3, 1]),
        ([-0.0, 0.0], [0, 1], [0, 1]),
    ],
)
def test_order_is_best_first_and_ranks_are_its_inverse(
    scores: list[float], order: list[int], places: list[int]
) -> None:
    assert best_first(scores) == order
    assert ranks(order) == places
