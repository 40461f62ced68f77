"""Held-out records that training has seen are counted."""

from dataclasses import replace
from pathlib import Path

import pytest

from beholder_training.cli import main
from beholder_training.data import Record
from beholder_training.overlap import Overlap, overlap

SEEN = Record("r", "What is it?", (Path("a.png"), Path("b.png")), ("A", "B"), (1.0, 0.0), "data.jsonl:1")
TEXT = replace(SEEN, images=())


def test_questions_and_images_are_counted_apart() -> None:
    held_out = [
        replace(SEEN, responses=("C", "D"), where="other.jsonl:1"),  # the same question, whatever is answered
        replace(SEEN, images=(Path("sub/../a.png"), Path("b.png"))),
        replace(SEEN, prompt="Where is it?"),
        replace(SEEN, images=(Path("b.png"),)),
        replace(SEEN, images=(Path("c.png"),)),
        TEXT,
    ]
    assert overlap([SEEN], held_out) == Overlap(6, 2, 2)
    assert overlap([SEEN, TEXT], held_out) == Overlap(6, 3, 2)
    assert not overlap([SEEN], held_out[4:])


def test_training_warns_in_one_line(
    world: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(world / "length" / "train_pairs.jsonl")
    arguments = ["--base", str(tiny_base), "--output", str(tmp_path / "rm"), "--steps", "1", "--algorithm", "standard"]
    assert main(["train", "--train", data, "--validation", data, *arguments, "--set", "batch_prompts=2"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning: of " in line]
    assert "of 64 held-out records 64 have the prompt and images of a training record and 0 more" in line
