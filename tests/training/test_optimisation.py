"""The learning rate over the steps."""

import pytest

from beholder_training.optimisation import cosine


@pytest.mark.parametrize("steps", [11, 12, 15, 19, 20, 275, 1999])
def test_the_rate_never_exceeds_what_is_set(steps: int) -> None:
    factors = [cosine(0, steps, 0.1)(step) for step in range(steps)]
    assert max(factors) == 1.0
    assert factors[0] == pytest.approx(1 / max(0.1 * steps, 1))


def test_a_branch_starts_at_its_step_and_ends_at_zero() -> None:
    factors = [cosine(10, 110, 0.1)(step) for step in range(111)]
    assert factors[:10] == [0.0] * 10
    assert factors[10:20] == pytest.approx([step / 10 for step in range(1, 11)])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[110] == pytest.approx(0.0)
