"""Export: in half precision, of a model that ranks something, which what is measured leaves as it was."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beholder.errors import CheckpointError
from beholder.modeling.reward_model import RewardModel
from beholder.modeling.scoring import score_prompts
from beholder_training.branch import Branch
from beholder_training.data import Record, read_records
from beholder_training.export import bf16_error, export
from beholder_training.pipeline import evaluate_and_export
from tests.conftest import untrained
from tests.training.runs import config


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


def test_a_checkpoint_in_bf16_has_the_scores_of_its_rounded_weights(
    tiny_base: Path, world: Path, tmp_path: Path, records: list[Record]
) -> None:
    run = config(tiny_base, tmp_path / "rm", algorithm="standard", export_dtype="bfloat16")
    run.train = [world / "length" / "train.jsonl"]
    checkpoint = evaluate_and_export(run, untrained(tiny_base, seed=0), None, records, [])
    assert checkpoint.manifest.dtype == "bfloat16"
    weights = load_file(checkpoint.folder / "model.safetensors")
    assert {name for name, value in weights.items() if value.dtype != torch.bfloat16} == {"score.weight"}
    restored = Branch.from_checkpoint(checkpoint.folder)
    for sample in checkpoint.golden():
        prompt = restored.renderer.render(sample.conversation(), sample.response, checkpoint.golden_images(sample))
        found = score_prompts(restored.model, restored.encoder, [prompt])
        assert found == pytest.approx([sample.score], abs=1e-5), sample.id


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
