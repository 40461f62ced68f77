"""What export measures of a model leaves the model as it was, and a model that ranks nothing is not exported."""

from pathlib import Path

import pytest
import torch

from beholder.errors import CheckpointError
from beholder.modeling.reward_model import RewardModel
from beholder_training.branch import Branch
from beholder_training.data import Record, read_records
from beholder_training.export import bf16_error, export


@pytest.fixture
def records(world: Path) -> list[Record]:
    return read_records([world / "length" / "responses.jsonl"])[:4]


@pytest.fixture
def branch(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Branch:
    """A branch whose model `cpu` moves, as it does from an accelerator."""

    def move(model: RewardModel) -> RewardModel:
        model.to(torch.float64)
        return model.to(torch.float32)

    monkeypatch.setattr(RewardModel, "cpu", move)
    return Branch.from_checkpoint(tiny_checkpoint)


def test_the_error_of_bf16_is_that_of_its_rewards(branch: Branch, records: list[Record]) -> None:
    exact = branch.score(records)
    error = bf16_error(branch, records, exact)
    assert 1e-5 < error < 0.5
    assert branch.score(records) == exact


def test_a_model_whose_bf16_was_measured_can_go_on_training(branch: Branch, records: list[Record]) -> None:
    """Inference mode would mark weights that are moved in it for ever."""
    bf16_error(branch, records, branch.score(records))
    parameters = list(branch.model.parameters())
    assert not any(parameter.is_inference() for parameter in parameters)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in parameters)


def test_a_measurement_that_fails_leaves_the_weights_exact(
    branch: Branch, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [parameter.detach().clone() for parameter in branch.model.parameters()]

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Branch, "score", full)
    with pytest.raises(torch.OutOfMemoryError):
        bf16_error(branch, records, [])
    assert all(map(torch.equal, before, branch.model.parameters()))


@pytest.mark.parametrize(("weight", "shown"), [(float("nan"), "nan, nan"), (0.0, "0.0, 0.0")])
def test_a_model_whose_rewards_are_not_different_numbers_is_not_exported(
    weight: float, shown: str, branch: Branch, records: list[Record], tmp_path: Path
) -> None:
    with torch.no_grad():
        branch.model.score.weight.fill_(weight)
    with pytest.raises(CheckpointError, match=f"are not different numbers, and rank none: {shown}"):
        export(branch, tmp_path / "rm", records, base_model="b", algorithm="standard", data_fingerprint="0")
    assert not list(tmp_path.iterdir())
