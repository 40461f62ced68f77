"""What a run refuses before its first step, and what is left of one that fails after its last."""

import errno
import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beholder.checkpoint import read_checkpoint
from beholder.errors import CheckpointError, DataError
from beholder_training import pipeline
from beholder_training.branch import Branch
from beholder_training.config import TrainingConfig
from beholder_training.data import Record, read_records, with_pairs
from beholder_training.embedded import store_image
from beholder_training.export import export
from beholder_training.identity import files_identity, identity
from beholder_training.pipeline import (
    calibration_records,
    held_out_records,
    make_branches,
    run_training,
    training_records,
)
from beholder_training.runs import latest_checkpoint, scratch_folder, train
from beholder_training.trainer import RewardTrainer
from tests.pictures import png

Row = dict[str, Any]
Configure = Callable[..., TrainingConfig]


@pytest.fixture
def configure(tiny_base: Path, world: Path, tmp_path: Path) -> Configure:
    """Three steps that end in the middle of an epoch."""
    here = world / "length"

    def configured(**settings: Any) -> TrainingConfig:
        files: dict[str, Any] = {"train": [here / "train.jsonl"], "validation": [here / "responses.jsonl"]}
        defaults: dict[str, Any] = {
            "steps": 3,
            "batch_prompts": 8,
            "learning_rate": 1e-3,
            "algorithm": "sfc",
            "freeze_vision": False,
        }
        given: dict[str, Any] = {"base": str(tiny_base), "output": tmp_path / "rm"}
        return TrainingConfig(**(given | files | defaults | settings))

    return configured


def held_out(world: Path, tmp_path: Path, change: Callable[[list[Row]], object]) -> Path:
    """A copy of the world's held-out records, changed."""
    here = world / "length"
    rows = [json.loads(line) for line in (here / "responses.jsonl").read_text().splitlines()]
    for row in rows:
        row["img_path"] = str(here / row["img_path"])
    change(rows)
    (tmp_path / "broken.png").write_bytes(b"no image")
    file = tmp_path / "held_out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def break_image(rows: list[Row]) -> None:
    rows[2]["img_path"] = "broken.png"


def lengthen(rows: list[Row]) -> None:
    rows[2]["prompt"] = "word " * 3000


def leave_out_images(rows: list[Row]) -> None:
    for row in rows:
        row.pop("img_path")


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (break_image, {}, r"held_out.jsonl:3: unreadable-image: image .*broken.png: the 8 bytes"),
        (lengthen, {}, r"held_out.jsonl:3: too-long: the conversation has \d+ tokens"),
        (leave_out_images, {}, "held_out.jsonl: .* none of the held-out records has an image"),
        (list, {"max_length": 60}, "held_out.jsonl: .* golden samples .* at most 60 are accepted; raise max_length"),
    ],
)
def test_held_out_data_that_cannot_be_used_is_refused_before_the_first_step(
    change: Callable[[list[Row]], object],
    settings: dict[str, Any],
    message: str,
    configure: Configure,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "fit", lambda *_: pytest.fail("it trained"))
    with pytest.raises(DataError, match=message):
        run_training(configure(validation=[held_out(world, tmp_path, change)], **settings))
    assert not scratch_folder(configure()).exists()


def test_bad_held_out_records_are_skipped_on_request(
    configure: Configure, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_two(rows: list[Row]) -> None:
        break_image(rows)
        lengthen(rows[1:])

    file = held_out(world, tmp_path, break_two)
    run = configure(validation=[file], bad_records="skip")
    assert len(held_out_records(run, make_branches(run)[0])) == 64 - 2
    assert "problems: 1 unreadable-image, 1 too-long" in capsys.readouterr().err


def test_the_one_held_out_record_with_an_image_is_taken(configure: Configure, world: Path, tmp_path: Path) -> None:
    file = held_out(world, tmp_path, lambda rows: leave_out_images(rows[1:]))
    run = configure(validation=[file], calibration_records=4)
    main, _ = make_branches(run)
    chosen = calibration_records(run, main, held_out_records(run, main))
    assert [len(record.images) for record in chosen] == [0, 0, 0, 1]


def test_what_the_proxy_cannot_read_is_refused(configure: Configure) -> None:
    """The blank image is larger than the world's pictures."""
    run = configure(proxy_input="blank_image", max_length=100)
    main, proxy = make_branches(run)
    assert len(training_records(run, main, None)) == 64
    with pytest.raises(DataError, match=r"train.jsonl:1: too-long: for the proxy: the conversation has \d+ tokens"):
        training_records(run, main, proxy)


def fail_export(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def failed(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainingConfig]:
    """A run that found no room for its checkpoint."""

    def fail(**settings: Any) -> TrainingConfig:
        run = configure(**settings)
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "export", fail_export)
            with pytest.raises(OSError, match="No space left"):
                run_training(run)
        assert not run.output.exists()
        return run

    return fail


@pytest.mark.parametrize("settings", [{}, {"save_steps": 2, "lora_rank": 2, "save_proxy": True}])
def test_a_run_whose_export_failed_exports_without_another_step(
    settings: dict[str, Any],
    configure: Configure,
    failed: Callable[..., TrainingConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, _ = run_training(configure(**settings, output=tmp_path / "whole"))
    run = failed(**settings)
    assert "has the last step: the same command exports it" in capsys.readouterr().err
    monkeypatch.setattr(RewardTrainer, "training_step", lambda *_: pytest.fail("it trained"))
    resumed, _ = run_training(run)
    assert resumed.manifest.evaluation == whole.manifest.evaluation
    assert [sample.score for sample in resumed.golden()] == [sample.score for sample in whole.golden()]
    histories = [json.loads((each.folder / "history.json").read_text()) for each in (resumed, whole)]
    assert histories[0] == histories[1]
    assert not scratch_folder(run).exists()


def test_a_run_goes_on_with_its_own_settings_and_data_alone(
    failed: Callable[..., TrainingConfig], configure: Configure, world: Path, tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    lines = (world / "length" / "train.jsonl").read_text().splitlines(keepends=True)
    data.write_text("".join(lines))
    run = failed(train=[data], image_root=world / "length")
    records = with_pairs(read_records([data], world / "length"))
    assert latest_checkpoint(run, identity(run, records, 1)) is not None
    with pytest.raises(CheckpointError, match="other settings: processes was 1, is 2; give its own"):
        latest_checkpoint(run, identity(run, records, 2))
    with pytest.raises(CheckpointError, match="other settings: steps was 3, is 4; give its own"):
        run_training(configure(train=[data], image_root=world / "length", steps=4))
    data.write_text("".join(reversed(lines)))
    with pytest.raises(CheckpointError, match=r"other settings: training data was \w+, is \w+; give its own"):
        run_training(run)
    data.write_text("".join(lines))
    other = configure(train=[data], image_root=world / "length", save_proxy=True, calibration_records=8)
    assert read_checkpoint(run_training(other)[0].folder).manifest.evaluation["pairs"] == 8 * 3


def test_a_run_goes_on_with_its_own_images_and_base_alone(
    failed: Callable[..., TrainingConfig], configure: Configure, world: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "length", tmp_path / "length")
    shutil.copytree(world / "images", tmp_path / "images")
    shutil.copytree(tiny_base, tmp_path / "base")
    data = {"train": [tmp_path / "length" / "train.jsonl"], "base": str(tmp_path / "base")}
    run = failed(**data)
    image = with_pairs(read_records(run.train))[0].images[0]
    times = image.stat().st_atime_ns, image.stat().st_mtime_ns
    image.write_bytes(image.read_bytes())
    os.utime(image, ns=(times[0], times[1] + 1))
    with pytest.raises(CheckpointError, match=r"other settings: images was \w+, is \w+; give its own"):
        run_training(run)
    os.utime(image, ns=times)
    template = tmp_path / "base" / "chat_template.jinja"
    whole = template.read_text()
    template.write_text(whole + "\n")
    with pytest.raises(CheckpointError, match=r"other settings: base files was \w+, is \w+; give its own"):
        run_training(run)
    template.write_text(whole)
    assert run_training(run)[0].folder == run.output


def test_embedded_images_may_be_written_again(tmp_path: Path) -> None:
    """Their names are their content."""
    run = TrainingConfig("b", tmp_path / "rm", [Path("t")], [Path("v")], image_cache=tmp_path / "cache")
    image = store_image(png(), tmp_path / "cache")
    records = [Record("r", "?", (image,), ("A", "B"), (1.0, 0.0), "f:1")]
    before = files_identity(run, records, [])
    os.utime(image, ns=(0, 0))
    assert files_identity(run, records, []) == before


def test_missing_files_are_named_before_the_base_is_read(configure: Configure, tmp_path: Path) -> None:
    for name in ("train", "validation"):
        with pytest.raises(DataError, match=r"none\.jsonl: No such file or directory"):
            run_training(configure(base=str(tmp_path / "no-base"), **{name: [tmp_path / "none.jsonl"]}))


def test_one_held_out_record_gives_no_interval(configure: Configure, world: Path, tmp_path: Path) -> None:
    run = configure(validation=[held_out(world, tmp_path, lambda rows: rows.__delitem__(slice(1, None)))], steps=1)
    manifest = read_checkpoint(run_training(run)[0].folder).manifest
    assert manifest.evaluation["half_width_95"] is None
    assert manifest.evaluation["pairs"] == 3


def test_checkpoints_of_an_unknown_run_are_refused(failed: Callable[..., TrainingConfig]) -> None:
    run = failed()
    (scratch_folder(run) / "run.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"holds checkpoints without their run\.yaml: remove it to start anew"):
        run_training(run)


def test_no_room_for_the_last_step_is_said_and_ends_nothing(
    configure: Configure, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(RewardTrainer):
        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            fail_export()

    run = configure(algorithm="standard")
    records = with_pairs(read_records(run.train))
    train(run, records, Branch.from_base(run.base), None, Full, keep_last=True)
    assert "checkpoint-3 could not be saved ([Errno 28] No space left on device): going on" in capsys.readouterr().err
    assert not scratch_folder(run).exists()


def test_the_trainer_is_gone_before_export_and_the_limits_hold(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards = []

    def look(branch: Branch, *given: Any, **more: Any) -> Any:
        assert not [each for each in gc.get_objects() if issubclass(type(each), RewardTrainer)]
        hook = branch.model.register_forward_pre_hook(
            lambda _, __, batch: forwards.append(len(batch["rows"])), with_kwargs=True
        )
        with hook:
            return export(branch, *given, **more)

    monkeypatch.setattr(pipeline, "export", look)
    run_training(configure(batch_prompts=2, accumulation=2))
    assert max(forwards) <= 2 * 4  # four responses each
