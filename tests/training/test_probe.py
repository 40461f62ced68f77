"""The probe finds a backbone that packing is wrong for, and training then pads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from beholder_training.bases import make_base
from beholder_training.branch import Branch
from beholder_training.data import Record, read_records, with_pairs
from beholder_training.pipeline import choose_forward
from beholder_training.probe import probe_packing
from tests.training.runs import config


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


def test_an_attention_model_stays_packed_unless_told(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    main = Branch.from_base(str(tiny_base))
    choose_forward(config(tiny_base, tmp_path / "out"), main, None, records)
    assert main.packed
    choose_forward(config(tiny_base, tmp_path / "out", packed=False), main, None, records)
    assert not main.packed
