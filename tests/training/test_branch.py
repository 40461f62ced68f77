"""How many records a forward of `score` takes, and how exactly it computes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from beholder.modeling.reward_model import prepare_backbone
from beholder_training.bases import TINY
from beholder_training.branch import Branch
from beholder_training.data import Record, read_records, with_pairs
from benchmarks.random_branch import random_branch


@pytest.fixture
def records(world: Path) -> list[Record]:
    return with_pairs(read_records([world / "length" / "responses.jsonl"]))[:10]


@pytest.mark.parametrize("packed", [True, False])
def test_a_forward_keeps_to_both_limits_and_the_scores_stay(
    packed: bool, tiny_checkpoint: Path, records: list[Record]
) -> None:
    branch = Branch.from_checkpoint(tiny_checkpoint)
    branch.packed = packed
    whole = branch.score(records)
    longest = max(len(group.packed.token_ids) for record in records for group in branch.encode(record))
    rows = 1 if packed else 4
    assert _forwards(branch, records) == [10]
    branch.batch_prompts = 4
    assert _forwards(branch, records) == [4, 4, 2]
    branch.token_budget = 3 * rows * longest
    forwards = _forwards(branch, records)
    assert sum(forwards) == 10
    assert max(forwards) == 3
    branch.token_budget = 1  # a record above the budget is forwarded alone
    assert _forwards(branch, records) == [1] * 10
    for ours, theirs in zip(branch.score(records), whole, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def _forwards(branch: Branch, records: list[Record]) -> list[int]:
    """The number of records in each forward."""
    seen: list[int] = []

    def look(_: Any, __: Any, rewards: Any) -> None:
        seen.append(len(rewards) // 4)

    with branch.model.register_forward_hook(look):
        branch.score(records)
    return seen


def test_convolutions_in_float32_are_not_rounded_on_a_card(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    branch = Branch.from_checkpoint(tiny_checkpoint)
    assert not torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    prepare_backbone(branch.model.backbone)  # of one model, not of the process
    assert torch.backends.cudnn.allow_tf32
    random_branch(tmp_path, "qwen3_vl", TINY, torch.device("cpu"))
    assert not torch.backends.cudnn.allow_tf32
