"""What is optimised, with which state, and the learning rate over the steps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from beholder_training.bases import make_base
from beholder_training.branch import Branch
from beholder_training.branches import TwoBranches, branch_parameters
from beholder_training.optimisation import cosine, fill_state


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


@pytest.mark.parametrize("architecture", ["internvl", "qwen3_vl"])
@pytest.mark.parametrize("freeze_vision", [True, False])
def test_a_branch_that_sees_no_images_trains_its_text_alone(
    architecture: str, freeze_vision: bool, tmp_path: Path
) -> None:
    make_base(tmp_path / "base", architecture)
    seeing, text = Branch.from_base(str(tmp_path / "base")), Branch.from_base(str(tmp_path / "base"), sees_images=False)
    text_only = replace(seeing, sees_images=False)
    for main, proxy, blind in ((seeing, text, "proxy"), (text_only, None, "main")):
        both = TwoBranches(main, proxy, freeze_vision)
        names = {name for name, value in getattr(both, blind).named_parameters() if value.requires_grad}
        assert names
        assert all(name.startswith(("backbone.language_model.", "score.")) for name in names)
        if proxy is not None:
            assert all(next(each.parameters()).requires_grad for each in main.model.projectors)
            assert len(branch_parameters(both, "main")) > len(names)


def test_a_state_that_is_filled_in_changes_no_step() -> None:
    """One weight has its first gradient in the third step."""
    trained = []
    for fill in (False, True):
        early, late = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
        optimiser = torch.optim.AdamW([early, late], lr=0.1)
        for step in range(5):
            if fill:
                fill_state(optimiser)
                assert len(optimiser.state) == 2
            early.grad = torch.tensor([0.5, -step])
            late.grad = torch.tensor([1.0, -2.0]) if step >= 2 else None
            optimiser.step()
        trained.append(torch.stack([early, late]))
    assert torch.equal(*trained)
