"""What is independent in a test set are its questions; and whose images a record gets in the ablation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beholder_training.branch import Branch
from beholder_training.data import Record, read_records, with_pairs
from beholder_training.demo import models
from beholder_training.demo.report import print_accuracies
from beholder_training.evaluation.ablations import with_other_images
from beholder_training.evaluation.inputs import Model, TestSet
from beholder_training.evaluation.metrics import best_of_n, question_of_pair, question_of_record
from beholder_training.evaluation.statistics import estimate, paired_difference
from beholder_training.evaluation.suite import evaluate
from beholder_training.worlds import ENVIRONMENTS

PAIR = Record("r", "What is it?", (Path("a.png"),), ("A", "B"), (1.0, 0.0), "data.jsonl:1")


def test_records_of_one_prompt_and_its_images_are_one_question() -> None:
    """Files of pairs repeat it, and may write an image's path in two ways."""
    records = [
        PAIR,
        replace(PAIR, prompt="Where is it?"),
        replace(PAIR, responses=("C", "D", "E"), qualities=(2.0, 1.0, 0.0)),
        replace(PAIR, images=(Path("sub/../a.png"),)),
        replace(PAIR, images=()),
        replace(PAIR, images=(Path("a.png"), Path("b.png"))),
    ]
    assert question_of_record(records).tolist() == [0, 1, 0, 0, 2, 3]
    assert question_of_pair(records).tolist() == [0, 1, 0, 0, 0, 0, 2, 3]


def test_repeating_every_pair_makes_no_interval_narrower(tiny_checkpoint: Path, world: Path) -> None:
    file = world / "length" / "iid.jsonl"
    once = with_pairs(read_records([file]))[:32]
    thrice = [replace(record, where=f"{record.where} {copy}") for copy in range(3) for record in once]
    model = Model("m", tiny_checkpoint, Branch.from_checkpoint(tiny_checkpoint), "standard", "0")
    tests = [TestSet(name, file, records, "0") for name, records in (("once", once), ("thrice", thrice))]
    first, second = evaluate([model], tests, {}).results
    assert second.accuracy.half_width == pytest.approx(first.accuracy.half_width)
    assert second.top1.half_width == pytest.approx(first.top1.half_width)
    for name, found in first.ablations.items():
        assert second.ablations[name].half_width == pytest.approx(found.half_width), name


def test_best_of_n_takes_the_records_of_a_question_together() -> None:
    rng = np.random.default_rng(0)
    records = [replace(PAIR, images=(Path(f"{number}.png"),)) for number in range(50)]
    scores = rng.normal(size=(50, 2)).tolist()
    for once, thrice in zip(best_of_n(records, scores), best_of_n(records * 3, scores * 3), strict=True):
        assert thrice.half_width == pytest.approx(once.half_width, abs=1e-9)


def test_the_demo_takes_the_pairs_of_a_scene_together(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its o.o.d. pairs are three on each scene."""
    tests = models.TestSets.read(world)
    scenes = tests.scenes()
    assert scenes["ood"].tolist() == list(range(64)) * len(ENVIRONMENTS)
    right = (np.random.default_rng(1).random(64) < 0.9).astype(float)
    outcomes = {
        name: {"iid": right, "cue_free": right, "ood": np.tile(values, 3)}
        for name, values in (("standard", right * 0), ("sfc", right), ("proxy_balanced", right))
    }
    print_accuracies(outcomes, scenes)
    printed = capsys.readouterr().out
    (row,) = (line for line in printed.splitlines() if line.startswith("sfc  "))
    assert row.count(str(estimate(right))) == 3
    assert f"± {100 * paired_difference(right, right * 0).half_width:.1f} points" in printed


def test_other_images_are_as_many_and_a_record_without_any_stays_so(tiny_checkpoint: Path) -> None:
    one, other, third = (Path(f"{name}.png") for name in "abc")
    shown = [(one,), (), (one,), (one, other), (other,), (other, third), ()]
    records = [replace(PAIR, images=images, where=f"data.jsonl:{number}") for number, images in enumerate(shown)]
    branch = Branch.from_checkpoint(tiny_checkpoint)
    assert (changed := with_other_images(branch, records)) is not None
    assert [record.images for record in changed[1]] == [
        (other,), (), (other,), (other, third), (one,), (one, other), (),
    ]  # fmt: skip
    assert (changed := with_other_images(branch, [records[0], records[3]])) is not None  # none shows as many
    assert [record.images for record in changed[1]] == [(one, other), (one,)]
    assert with_other_images(branch, [records[0], records[1], records[2]]) is None
