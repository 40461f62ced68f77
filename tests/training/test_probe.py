"""The probe finds a backbone that packing is wrong for, and training then pads."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from beholder.errors import CheckpointError
from beholder.modeling.reward_model import RewardModel
from beholder_training.bases import make_base
from beholder_training.branch import Branch
from beholder_training.data import Record, read_records, with_pairs
from beholder_training.pipeline import choose_forward
from beholder_training.probe import choose_packing, probe_packing
from tests.training.runs import config

ACCELERATOR = torch.device("cpu", 0)  # told from torch.device("cpu"), and the same memory


@pytest.fixture
def records(world: Path) -> list[Record]:
    return with_pairs(read_records([world / "length" / "train.jsonl"]))[:16]


def with_recurrent_layer(branch: Branch) -> Branch:
    """Every token also sees the running mean of all before it, as a linear-attention layer would show it."""
    layer: Any = branch.model.backbone.language_model.layers[0]
    original: Callable[..., Any] = layer.forward

    def forward(hidden_states: torch.Tensor, *inputs: Any, **options: Any) -> Any:
        counts = torch.arange(1, hidden_states.shape[1] + 1).view(1, -1, 1)
        return original(hidden_states + hidden_states.cumsum(dim=1) / counts, *inputs, **options)

    layer.forward = forward
    return branch


@pytest.mark.parametrize("architecture", ["qwen3_vl", "internvl"])
def test_an_attention_model_may_be_packed(architecture: str, tmp_path: Path, records: list[Record]) -> None:
    make_base(tmp_path / "base", architecture)
    probe = probe_packing(Branch.from_base(str(tmp_path / "base")), records)
    assert probe.equal
    assert probe.error < 1e-3 * probe.spread


def test_a_recurrent_layer_is_found_and_padded(
    tiny_base: Path, tmp_path: Path, records: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    main = with_recurrent_layer(Branch.from_base(str(tiny_base)))
    assert not probe_packing(main, records).equal
    choose_forward(config(tiny_base, tmp_path / "out"), main, None, records)
    assert not main.packed
    assert "the model's packed rewards differ from separate ones" in capsys.readouterr().err
    together = main.score(records[:4], batch_prompts=4)
    alone = [rewards for record in records[:4] for rewards in main.score([record])]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_the_longest_record_is_probed_too(
    tiny_base: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = replace(records[9], responses=tuple(response + " word" * 60 for response in records[9].responses[:2]))
    probed: list[Record] = []
    score = Branch.score

    def look(branch: Branch, some: list[Record], batch_prompts: int) -> list[list[float]]:
        probed.extend(some)
        return score(branch, some, batch_prompts)

    monkeypatch.setattr(Branch, "score", look)
    probe_packing(Branch.from_base(str(tiny_base)), [*records[:9], replace(long, qualities=(1.0, 0.0)), *records[10:]])
    assert {record.where for record in probed} == {record.where for record in (*records[:3], long)}


def test_what_does_not_fit_on_the_accelerator_whole_is_probed_without(
    tiny_base: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    score, moves = Branch.score, moves_of(monkeypatch)

    def fill(branch: Branch, some: list[Record], batch_prompts: int) -> list[list[float]]:
        if moves[-1] == ACCELERATOR:
            raise torch.OutOfMemoryError
        return score(branch, some, batch_prompts)

    monkeypatch.setattr(Branch, "score", fill)
    assert choose_packing(Branch.from_base(str(tiny_base)), records).equal
    assert moves == [ACCELERATOR, torch.device("cpu")]


def test_the_probe_gives_the_accelerator_back(
    tiny_base: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = moves_of(monkeypatch)
    assert choose_packing(Branch.from_base(str(tiny_base)), records).equal
    assert moves == [ACCELERATOR, torch.device("cpu")]


def moves_of(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Where models are moved from now on, in order."""
    moves: list[torch.device] = []
    to: Callable[..., RewardModel] = RewardModel.to

    def move(model: RewardModel, where: torch.device) -> RewardModel:
        moves.append(where)
        return to(model, where)

    monkeypatch.setattr("beholder_training.branch.device", lambda: ACCELERATOR)
    monkeypatch.setattr(RewardModel, "to", move)
    return moves


def test_a_base_with_a_sliding_window_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """On short records its packed and separate rewards would be the same."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    layers = config["text_config"]["num_hidden_layers"]
    config["text_config"] |= {"sliding_window": 8, "layer_types": ["sliding_attention"] * layers}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="attends within a sliding window"):
        Branch.from_base(str(base))


def test_an_attention_model_stays_packed_unless_told(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    main = Branch.from_base(str(tiny_base))
    choose_forward(config(tiny_base, tmp_path / "out"), main, None, records)
    assert main.packed
    choose_forward(config(tiny_base, tmp_path / "out", packed=False), main, None, records)
    assert not main.packed
