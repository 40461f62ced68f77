"""LoRA trains adapters and head alone, and the export is a merged checkpoint like any other."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beholder.checkpoint import read_checkpoint
from beholder.modeling.reward_model import RewardModel
from beholder_training.adapters import add_adapters, merge_adapters
from beholder_training.branch import Branch
from beholder_training.cli import main
from beholder_training.data import Record, read_records, with_pairs


@pytest.fixture
def records(world: Path) -> list[Record]:
    return with_pairs(read_records([world / "length" / "train.jsonl"]))[:4]


def test_merging_keeps_every_reward(tiny_base: Path, records: list[Record]) -> None:
    branch = Branch.from_base(str(tiny_base))
    names = list(branch.model.state_dict())
    plain = branch.score(records)
    add_adapters(branch.model, rank=4, alpha=8, dropout=0.0)
    assert branch.score(records)[0] == pytest.approx(plain[0], abs=1e-5)  # adapters start at nothing
    adapters = [parameter for name, parameter in branch.model.named_parameters() if "lora_" in name]
    for parameter in adapters:
        torch.nn.init.normal_(parameter, std=0.1)
    adapted = branch.score(records)
    assert adapted[0] != pytest.approx(plain[0], abs=1e-3)
    merge_adapters(branch.model)
    assert branch.score(records)[0] == pytest.approx(adapted[0], abs=1e-4)
    assert list(branch.model.state_dict()) == names


def test_only_adapters_and_head_are_trained(tiny_base: Path) -> None:
    model = RewardModel.from_base(tiny_base)
    add_adapters(model, rank=2, alpha=4, dropout=0.0)
    trained = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith("backbone.visual")
    ]
    assert all("lora_" in name or name == "score.weight" for name in trained)
    assert "score.weight" in trained


@pytest.fixture(scope="module")
def exported(tiny_base: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that `beholder-train` made with adapters, and its proxy."""
    here, output = world / "length", tmp_path_factory.mktemp("lora") / "rm"
    files = ["--train", str(here / "train.jsonl"), "--validation", str(here / "responses.jsonl")]
    settings = ["--set", "batch_prompts=8", "lora_rank=4", "learning_rate=1e-3", "save_proxy=true"]
    assert main(["train", *files, "--base", str(tiny_base), "--output", str(output), "--steps", "8", *settings]) == 0
    return output


def tensors(file: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in load_file(file).items()}


def test_a_lora_run_exports_merged_with_its_proxy(exported: Path, tiny_checkpoint: Path) -> None:
    """To an engine it is a checkpoint like any other: the same tensors under the same configuration."""
    checkpoint = read_checkpoint(exported)
    assert {"proxy/config.json", "proxy/model.safetensors"} <= set(checkpoint.manifest.files)
    for folder in (exported, exported / "proxy"):
        assert tensors(folder / "model.safetensors") == tensors(tiny_checkpoint / "model.safetensors")
        assert (folder / "config.json").read_text() == (tiny_checkpoint / "config.json").read_text()
    proxy = RewardModel.from_checkpoint(exported / "proxy")
    assert not torch.equal(proxy.score.weight, RewardModel.from_checkpoint(exported).score.weight)
    restored = Branch.from_checkpoint(exported)
    for sample in checkpoint.golden():
        prompt = restored.renderer.render(sample.conversation(), sample.response, checkpoint.golden_images(sample))
        score = restored.model(**restored.collate_groups([restored.encoder.encode([prompt])])).item()
        assert score == pytest.approx(sample.score, abs=1e-5), sample.id
