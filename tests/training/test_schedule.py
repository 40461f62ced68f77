"""The benchmark compares like with like: the published schedule's first 20 losses are those of the packed forward."""

import argparse
from pathlib import Path

import pytest

from beholder.errors import BeholderError
from benchmarks.training import EQUAL_STEPS, EQUAL_WITHIN, Run, measure, require_equal

SMALL = argparse.Namespace(side=96, steps=EQUAL_STEPS, prompts=2, threads=1)


@pytest.mark.slow
def test_the_first_losses_are_equal(tiny_base: Path) -> None:
    published, packed = (measure(schedule, tiny_base, 4, SMALL) for schedule in ("published", "packed"))
    assert len(published.losses) == EQUAL_STEPS
    assert require_equal(published, packed) <= EQUAL_WITHIN
    assert max(published.losses) - min(published.losses) > 0.01  # it trains


def test_unequal_losses_end_the_benchmark() -> None:
    ours, theirs = Run("packed", 2, [0.7, 0.6], 1.0, 1), Run("published", 2, [0.7, 0.61], 1.0, 1)
    with pytest.raises(BeholderError, match=r"differ from the published schedule's by 0\.01"):
        require_equal(theirs, ours)
