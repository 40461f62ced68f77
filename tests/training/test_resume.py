"""A run that was killed or terminated goes on as if nothing had happened; a diverged one says on which records."""

from pathlib import Path
from typing import Any

import pytest
import torch

from beholder_training.branch import Branch
from beholder_training.config import TrainingConfig
from beholder_training.data import Record, read_records, with_pairs
from beholder_training.errors import TrainingDiverged, TrainingInterrupted
from beholder_training.runs import scratch_folder, train
from beholder_training.trainer import RewardTrainer
from tests.training.processes import Drive
from tests.training.runs import config


@pytest.fixture
def drive(tiny_base: Path, world: Path, tmp_path: Path) -> Drive:
    return Drive(tiny_base, world, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_with_the_uninterrupted_losses(drive: Drive) -> None:
    """Across the end of an epoch (8 steps of 8 of 64 prompts) and in the middle of one."""
    settings = ["steps=11", "batch_prompts=4", "accumulation=2", "save_steps=3"]
    whole = drive("whole", *settings)
    assert whole.status == 0, whole.error
    assert len(whole.losses) == 12  # one of them the proxy's warm-up
    killed = drive("killed", *settings, end=("KILL", 8))
    assert killed.status == -9
    assert not (drive.folder / "killed").exists()
    resumed = drive("killed", *settings)
    assert resumed.status == 0, resumed.error
    assert len(resumed.losses) == 6  # from step 6, the last that was saved
    for ours, theirs in zip(killed.losses[:6] + resumed.losses, whole.losses, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert (drive.folder / "killed" / "reward.json").is_file()
    assert not (drive.folder / ".killed.training").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_saves_and_the_same_command_goes_on(drive: Drive) -> None:
    settings = ["steps=5", "batch_prompts=4"]
    terminated = drive("rm", *settings, end=("TERM", 3))
    assert terminated.status == 143, terminated.error
    assert "stopped by SIGTERM after step 3 of 6" in terminated.error
    assert "Traceback" not in terminated.error
    other = drive("rm", *settings, "centring=0.1")
    assert other.status == 1
    assert "holds an interrupted run with other settings" in other.error
    resumed = drive("rm", *settings)
    assert resumed.status == 0, resumed.error
    assert (len(terminated.losses), len(resumed.losses)) == (3, 3)


@pytest.fixture
def records(world: Path) -> list[Record]:
    return with_pairs(read_records([world / "length" / "train.jsonl"]))[:16]


def test_a_run_goes_on_with_its_new_intervals(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    class Stopped(RewardTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            self.stopper.received = True
            return super().training_step(model, inputs, num_items_in_batch)

    def run(**intervals: int) -> TrainingConfig:
        return config(tiny_base, tmp_path / "out", algorithm="standard", steps=6, **intervals)

    with pytest.raises(TrainingInterrupted, match="after step 1 of 6"):
        train(run(save_steps=5, logging_steps=1), records, Branch.from_base(str(tiny_base)), None, Stopped)
    resumed = train(run(save_steps=4, logging_steps=2), records, Branch.from_base(str(tiny_base)), None)
    steps = [line["step"] for line in resumed.state.log_history if "learning_rate" in line]
    assert steps == [1, 2, 4, 6]
    kept = sorted(path.name for path in scratch_folder(run()).glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-6"]


def test_a_loss_that_is_not_finite_names_the_records(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    run = config(tiny_base, tmp_path / "out", algorithm="standard")
    main = Branch.from_base(run.base)
    with torch.no_grad():
        main.model.score.weight.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"the loss is not finite at step 1, on records train-\d+ \(.*:\d+\)"):
        train(run, records, main, None)
    assert not scratch_folder(run).exists()


def test_a_gradient_that_is_not_finite_names_the_records(
    tiny_base: Path, tmp_path: Path, records: list[Record]
) -> None:
    run = config(tiny_base, tmp_path / "out", algorithm="standard")
    main = Branch.from_base(run.base)
    main.model.score.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingDiverged, match=r"the gradient of the main branch is \w+ at step 1, on records train-"):
        train(run, records, main, None)
