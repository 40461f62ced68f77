"""How many pairs a step needs, and that a run says so."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from beholder_training.data import Record, read_records, with_pairs
from beholder_training.losses import proxy_balanced_weight
from beholder_training.objective import small_step_warning
from tests.training.runs import config, losses

HOLDS = 0.9
PAIR = Record("r", "?", (), ("A", "B"), (1.0, 0.0), "data.jsonl:1")
FOUR = replace(PAIR, responses=("A", "B", "C", "D"), qualities=(4.0, 3.0, 2.0, 1.0))  # six pairs


@pytest.mark.parametrize(
    ("pairs", "left"), [(1, 1.0), (2, 0.72), (4, 0.46), (8, 0.26), (16, 0.14), (32, 0.07), (128, 0.02)]
)
def test_what_is_left_of_a_cue_is_as_documented(pairs: int, left: float) -> None:
    """Expected normalised weights of a pair on which the cue holds, and of one on which it fails."""
    expected = {True: 0.0, False: 0.0}
    for own in expected:
        for others in range(pairs):  # of pairs - 1, those on which it holds too
            chance = math.comb(pairs - 1, others) * HOLDS**others * (1 - HOLDS) ** (pairs - 1 - others)
            margins = [math.log(HOLDS / (1 - HOLDS)) * (1 if holds else -1)
                       for holds in (own, *[True] * others, *[False] * (pairs - 1 - others))]  # fmt: skip
            weights = proxy_balanced_weight(torch.zeros(pairs), torch.tensor(margins, dtype=torch.float64))
            expected[own] += chance * weights[0].item()
    odds = HOLDS * expected[True] / ((1 - HOLDS) * expected[False])
    assert math.log(odds) / math.log(HOLDS / (1 - HOLDS)) == pytest.approx(left, abs=0.006)


def test_a_step_of_few_pairs_is_told_what_accumulation_gives_enough(tmp_path: Path) -> None:
    small = config(tmp_path, tmp_path / "rm", batch_prompts=2)
    assert "a step has about 2 pairs: proxy_balanced weighs" in small_step_warning(small, [PAIR], 1)
    assert small_step_warning(small, [PAIR], 1).endswith(": set accumulation=16")
    assert not small_step_warning(replace(small, accumulation=16), [PAIR], 1)
    assert not small_step_warning(small, [PAIR], 16)
    assert small_step_warning(small, [FOUR], 1).endswith(": set accumulation=3")
    assert not small_step_warning(replace(small, accumulation=3), [FOUR], 1)
    for alone in ("standard", "constant", "sfc"):  # each pair's weight is its own
        assert not small_step_warning(replace(small, algorithm=alone), [PAIR], 1)


def test_a_run_warns_at_its_start(
    tiny_base: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = with_pairs(read_records([world / "length" / "train_pairs.jsonl"]))[:4]
    losses(config(tiny_base, tmp_path / "out", steps=1, batch_prompts=2), records)
    assert "warning: a step has about 2 pairs" in capsys.readouterr().err
