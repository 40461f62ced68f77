"""Scoring several test sets in one pass changes no score."""

from pathlib import Path

import pytest

from beholder_training.branch import Branch
from beholder_training.data import read_records
from beholder_training.evaluation.together import score_together


def test_the_scores_are_those_of_each_test_set_alone(tiny_checkpoint: Path, world: Path) -> None:
    branch = Branch.from_checkpoint(tiny_checkpoint)
    tests = {
        name: read_records([world / file])[:40]
        for name, file in {
            "iid": "length/iid.jsonl",
            "cue_free": "length/cue_free.jsonl",
            "style": "style/iid.jsonl",
        }.items()
    }
    together = score_together(branch, tests)
    alone = {name: branch.score(records) for name, records in tests.items()}
    assert together.keys() == alone.keys()
    for name, scores in alone.items():
        assert [score for row in together[name] for score in row] == pytest.approx(
            [score for row in scores for score in row], abs=1e-5
        )
