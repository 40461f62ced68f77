"""Two processes, sharded (FSDP2) or not, take the steps that one takes."""

import json
import os
from pathlib import Path
from unittest.mock import patch

import pytest

from beholder.checkpoint import read_checkpoint
from beholder.errors import DataError
from beholder_training.bases import make_base
from beholder_training.data import read_records, with_pairs
from tests.training.processes import Drive, Driven
from tests.training.runs import config, run


@pytest.fixture
def drive(tiny_base: Path, world: Path, tmp_path: Path) -> Drive:
    return Drive(tiny_base, world, tmp_path)


def equal(ours: Driven, theirs: Driven) -> None:
    assert ours.status == 0, ours.error
    assert len(ours.losses) == len(theirs.losses)
    for step, (one, other) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4), step


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_give_the_losses_of_one(drive: Drive) -> None:
    """The default weighting, whose mean is over the step's pairs on all processes."""
    settings = ["steps=4", "max_grad_norm=1.0"]
    one = drive("one", *settings, "batch_prompts=16")
    assert one.status == 0, one.error
    equal(drive("ddp", *settings, "batch_prompts=8", ranks=2), one)
    equal(drive("fsdp", *settings, "batch_prompts=2", "accumulation=4", "fsdp=true", ranks=2), one)
    golden = [read_checkpoint(drive.folder / name).golden() for name in ("one", "ddp", "fsdp")]
    for name, samples in zip(("ddp", "fsdp"), golden[1:], strict=True):
        for ours, theirs in zip(samples, golden[0], strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=1e-3), name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_last_step_of_an_epoch_repeats_no_record(drive: Drive) -> None:
    """Ten records: two of them make the second step of each epoch, in which the second process has none."""
    settings = ["steps=4", "train_weights=0.15625"]
    one = drive("one", *settings, "batch_prompts=8")
    assert one.status == 0, one.error
    equal(drive("two", *settings, "batch_prompts=4", ranks=2), one)
    equal(drive("sharded", *settings, "batch_prompts=2", "accumulation=2", "fsdp=true", ranks=2), one)


def test_sharding_that_would_not_take_place_is_refused(tiny_base: Path, world: Path, tmp_path: Path) -> None:
    records = with_pairs(read_records([world / "length" / "train.jsonl"]))[:4]
    # accelerate asks for sharding in the environment, which later runs would inherit
    with (
        patch.dict(os.environ),
        pytest.raises(DataError, match=r"process 1 of 1, on the device cpu: .* or set fsdp=false"),
    ):
        run(config(tiny_base, tmp_path / "out", fsdp=True), records)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sharded_run_resumes(drive: Drive) -> None:
    settings = ["steps=5", "batch_prompts=4", "fsdp=true", "save_steps=2"]
    whole = drive("whole", *settings, ranks=2)
    assert whole.status == 0, whole.error
    assert len(whole.losses) == 6  # one of them the proxy's warm-up
    assert drive("cut", *settings, end=("KILL", 6), ranks=2).status != 0
    resumed = drive("cut", *settings, ranks=2)
    assert resumed.status == 0, resumed.error
    assert len(resumed.losses) == 2  # from step 4, the last that was saved
    for ours, theirs in zip(resumed.losses, whole.losses[4:], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stop", [2, 5])
def test_a_sharded_run_resumes_from_steps_of_one_branch_alone(stop: int, world: Path, tmp_path: Path) -> None:
    """The main branch has no gradient in the proxy's warm-up, InternVL's text-only proxy none in its projector."""
    make_base(tmp_path / "base", "internvl")
    drive = Drive(tmp_path / "base", world, tmp_path)
    settings = ["steps=3", "batch_prompts=4", "fsdp=true", "freeze_vision=true", "proxy_warmup_steps=3"]
    whole = drive("whole", *settings, ranks=2)
    assert whole.status == 0, whole.error
    cut = drive("cut", *settings, end=("TERM", stop), ranks=2)
    assert "stopped by SIGTERM" in cut.error
    resumed = drive("cut", *settings, ranks=2)
    assert resumed.status == 0, resumed.error
    assert len(resumed.losses) == 6 - stop
    for ours, theirs in zip(resumed.losses, whole.losses[stop:], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sharded_bf16_with_adapters_and_checkpointing_stays_near_float32(drive: Drive) -> None:
    """What the ready configurations set, together; the export is merged and verified by its golden scores."""
    settings = ["steps=3", "algorithm=sfc", "freeze_vision=true", "lora_rank=4"]
    one = drive("one", *settings, "batch_prompts=8")
    more = ["fsdp=true", "bf16=true", "gradient_checkpointing=true", "workers=1", "batch_prompts=4"]
    sharded = drive("sharded", *settings, *more, ranks=2)
    assert sharded.status == 0, sharded.error
    for ours, theirs in zip(sharded.losses, one.losses, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.05)
    assert read_checkpoint(drive.folder / "sharded").golden()


@pytest.fixture
def mixed(world: Path, tmp_path: Path) -> Path:
    """Records with a picture and, every second one, without."""
    here = tmp_path / "mixed" / "length"
    here.mkdir(parents=True)
    for name in ("train.jsonl", "responses.jsonl"):
        records = [json.loads(line) for line in (world / "length" / name).read_text().splitlines()]
        for number, record in enumerate(records):
            record["img_path"] = None if number % 2 else str(world / "length" / record["img_path"])
        (here / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return here.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", ["qwen3_vl", "internvl"])
def test_a_sharded_process_may_have_pictures_where_another_has_none(
    architecture: str, mixed: Path, tmp_path: Path
) -> None:
    """A prompt a process and step; InternVL's projector, and Qwen3-VL's whole tower, train on one process alone."""
    make_base(tmp_path / "base", architecture)
    drive = Drive(tmp_path / "base", mixed, tmp_path)
    settings = ["steps=6", "algorithm=sfc", "proxy_input=blank_image", f"freeze_vision={architecture == 'internvl'}"]
    one = drive("one", *settings, "batch_prompts=2")
    assert one.status == 0, one.error
    equal(drive("sharded", *settings, "batch_prompts=1", "fsdp=true", ranks=2), one)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sharded_processes_keep_features_each_on_its_own(drive: Drive) -> None:
    """In the second epoch, from step 33, one finds its picture among its features where the other does not."""
    settings = ["steps=40", "batch_prompts=1", "algorithm=standard", "fsdp=true", "freeze_vision=true"]
    settings.append("proxy_warmup_steps=0")
    plain = drive("plain", *settings, ranks=2)
    assert plain.status == 0, plain.error
    equal(drive("kept", *settings, "vision_cache_gib=1", ranks=2), plain)
