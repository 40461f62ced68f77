"""Each example from end to end on an untrained tiny base: it runs and reports. That it learns takes longer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.scenes import ANSWERS, answer, draw, style

pytestmark = pytest.mark.timeout(400)
ROOT = Path(__file__).resolve().parents[2]


def run_example(name: str, base: Path, checkpoint: Path, output: Path, *flags: str) -> str:
    """What the example printed."""
    common = ["--base", str(base), "--checkpoint", str(checkpoint), "--output", str(output)]
    small = ["--warm-steps", "5", "--test", "16"]
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", *common, *small, *flags],
        cwd=ROOT,
        env={**os.environ, "BEHOLDER_ENGINE": "transformers", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_best_of_n(tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    printed = run_example("best_of_n", tiny_base, tiny_checkpoint, tmp_path)
    rewards = [float(line.split()[1]) for line in printed.splitlines()[2:]]
    assert len(rewards) == 5
    assert rewards == sorted(rewards), "the best of more is never worse by the reward model's own measure"


@pytest.mark.slow
def test_ppo(tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--steps", "2", "--batch", "4", "--measure-every", "1"]
    printed = run_example("ppo", tiny_base, tiny_checkpoint, tmp_path, *flags)
    assert "standard errors" in printed
    (curve,) = json.loads((tmp_path / "ppo.json").read_text())
    assert curve["steps"] == [0, 1, 2]
    assert (tmp_path / "ppo.png").stat().st_size > 1000


@pytest.mark.slow
def test_grpo_trl(tiny_base: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--steps", "2", "--prompts", "2", "--generations", "2", "--measure-every", "1"]
    printed = run_example("grpo_trl", tiny_base, tiny_checkpoint, tmp_path, *flags)
    assert "standard errors" in printed
    (curve,) = json.loads((tmp_path / "grpo_trl.json").read_text())
    assert curve["steps"] == [0, 1, 2]
    assert (tmp_path / "grpo_trl.png").stat().st_size > 1000


def test_without_a_base_an_example_says_what_to_do(tmp_path: Path, tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "examples.best_of_n", "--base", str(tmp_path), "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "make demo" in done.stderr


def test_truth_is_one_right_answer_and_no_other() -> None:
    import random

    for item in draw(200, "truth"):
        right = answer(item, random.Random(0))
        wrong = sorted(set(ANSWERS) - item.right)[0]
        assert item.is_true(right)
        assert not item.is_true(f"Definitely {wrong}!")
        assert not item.is_true(f"{right} {wrong}")
        assert not item.is_true("I cannot say.")
        assert style(right) is not None
        assert style(f"{right} sure.") is None
        assert item.right <= set(ANSWERS)


def test_the_same_seed_draws_the_same_items() -> None:
    assert [item.question for item in draw(20, "a")] == [item.question for item in draw(20, "a")]
    assert [item.image.tobytes() for item in draw(5, "a")] != [item.image.tobytes() for item in draw(5, "b")]
