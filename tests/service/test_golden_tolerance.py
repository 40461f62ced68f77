"""Which golden score counts as the trained one."""

from math import nan

import pytest

from beholder.checkpoint import Checkpoint
from beholder.errors import GoldenMismatch
from beholder.golden import GoldenResult, require_passed


@pytest.mark.parametrize(
    ("served", "passed"), [(1.0, True), (0.5, True), (1.5, True), (0.4, False), (1.6, False), (nan, False)]
)
def test_a_score_passes_within_its_tolerance_on_either_side(served: float, passed: bool) -> None:
    assert GoldenResult("g", 1.0, served, tolerance=0.5).passed is passed


def test_the_sample_that_is_furthest_off_is_named() -> None:
    near, high, low = (GoldenResult(str(score), 1.0, score, tolerance=0.5) for score in (1.2, 2.0, -3.0))
    with pytest.raises(GoldenMismatch, match=r"'-3\.0' scores -3, training computed 1 .*2 of 3 samples"):
        require_passed([near, high, low])


def test_the_tolerance_is_a_thousandth_or_a_quarter_of_the_spread_within_a_prompt(checkpoint: Checkpoint) -> None:
    """As the README promises."""
    spread = checkpoint.manifest.within_prompt_spread
    assert checkpoint.golden_tolerance("float32") == 1e-3
    assert checkpoint.golden_tolerance("bfloat16") == checkpoint.golden_tolerance("float16") == spread / 4
