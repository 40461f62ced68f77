"""`beholder-train` as a user runs it: a checkpoint from files, and one line for every mistake."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from beholder.checkpoint import read_checkpoint, verify_files
from beholder_training.branch import Branch
from beholder_training.cli import main
from beholder_training.config import TrainingConfig
from beholder_training.data import fingerprint, read_records


@pytest.fixture
def arguments(world: Path, tiny_base: Path, tmp_path: Path) -> list[str]:
    here = world / "length"
    files = ["--train", str(here / "train.jsonl"), str(here / "train_pairs.jsonl")]
    files += ["--validation", str(here / "responses.jsonl"), "--base", str(tiny_base)]
    settings = ["--set", "batch_prompts=8", "freeze_vision=false", "learning_rate=1e-3"]
    return ["train", *files, "--output", str(tmp_path / "rm"), "--steps", "2", *settings]


def test_train_writes_a_whole_checkpoint_that_evaluate_reads(
    arguments: list[str], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    checkpoint = read_checkpoint(tmp_path / "rm")
    verify_files(checkpoint)
    manifest = checkpoint.manifest
    assert (manifest.algorithm, manifest.architecture) == ("proxy_balanced", "Qwen3VLForSequenceClassification")
    assert manifest.evaluation["pairs"] == 3 * 64
    assert main(["evaluate", str(tmp_path / "rm"), str(world / "length" / "responses.jsonl")]) == 0
    same = f"{manifest.evaluation['held_out_accuracy']:.3f} ± {manifest.evaluation['half_width_95']:.3f}"
    printed = capsys.readouterr().out
    assert f"serve it: beholder serve {tmp_path / 'rm'}" in printed
    assert printed.count(same) == 2  # what training printed, and evaluate on the same records
    assert manifest.processor["backend"] == "torchvision"
    assert main(["evaluate", str(tmp_path / "rm"), str(world / "length" / "iid.jsonl")]) == 0
    assert "over 64 pairs" in capsys.readouterr().out


def test_the_exported_model_scores_as_the_trained_one(arguments: list[str], world: Path, tmp_path: Path) -> None:
    assert main(arguments) == 0
    restored = Branch.from_checkpoint(tmp_path / "rm")
    for sample in read_checkpoint(tmp_path / "rm").golden():
        images = read_checkpoint(tmp_path / "rm").golden_images(sample)
        prompt = restored.renderer.render(sample.conversation(), sample.response, images)
        score = restored.model(**restored.collate_groups([restored.encoder.encode([prompt])])).item()
        assert score == pytest.approx(sample.score, abs=1e-5), sample.id
    assert len(restored.score(read_records([world / "length" / "responses.jsonl"])[:2])) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--base", "no/such-base"], "base 'no/such-base' is neither a folder nor to be had from the hub"),
        (["--train", "none.jsonl"], "none.jsonl: No such file or directory"),
        (["--algorithm", "magic"], "algorithm 'magic' is unknown: use one of standard, sfc, proxy_balanced, constant"),
        (["--set", "learning_rate=fast"], "learning_rate must be a number, not 'fast'"),
        (["--set", "learning_speed=1"], "unknown setting learning_speed"),
        (["--set", "steps=1"], "steps is given by a flag and by --set: leave one of them out"),
        (["--config", "none.yaml"], "none.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], change: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *change]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("beholder-train: error: ")
    assert message in error
    assert not list(tmp_path.iterdir())


def test_the_help_gives_every_setting_its_meaning_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "label_smoothing: probability that a label is wrong" in printed
    assert "learning_rate=1e-05" in printed
    assert all(f"{field.name}=" in printed for field in fields(TrainingConfig)[4:])


def test_a_repeated_flag_adds_to_the_earlier_one(arguments: list[str], world: Path, tmp_path: Path) -> None:
    more = world / "length" / "train_pairs_more.jsonl"
    more.write_text((world / "length" / "train_pairs.jsonl").read_text())
    repeated = ["--train", str(more), "--set", "algorithm=sfc", "--set", "algorithm=standard"]
    assert main([*arguments, *repeated]) == 0
    manifest = read_checkpoint(tmp_path / "rm").manifest
    files = [world / "length" / name for name in ("train.jsonl", "train_pairs.jsonl", more.name)]
    assert (manifest.algorithm, manifest.data_fingerprint) == ("standard", fingerprint(files))
    history = json.loads((tmp_path / "rm" / "history.json").read_text())
    assert max(line["learning_rate"] for line in history) == 1e-3  # of the first --set


def test_evaluate_keeps_to_its_limits(tiny_checkpoint: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(tiny_checkpoint), str(world / "length" / "iid.jsonl")]
    assert main(command) == 0
    whole = capsys.readouterr().out
    assert main([*command, "--batch-prompts", "5", "--token-budget", "200"]) == 0
    assert capsys.readouterr().out == whole
    assert main([*command, "--batch-prompts", "0"]) == 1
    assert "--batch-prompts must be positive" in capsys.readouterr().err


def test_an_existing_output_is_refused_before_any_work(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rm").mkdir()
    assert main(arguments) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_broken_image_ends_training_with_its_path_and_nothing_half_written(
    arguments: list[str], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "?", "img_path": "broken.png", "chosen": "A", "rejected": "B"}\n')
    assert main([*arguments, "--train", str(data)]) == 1
    assert f"image {broken}: the 8 bytes are not a PNG" in capsys.readouterr().err
    assert not (tmp_path / "rm").exists()


def test_an_unsupported_architecture_is_refused_with_the_reason(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    assert main([*arguments, "--base", str(tmp_path / "bert")]) == 1
    assert "model type 'bert' is not supported: stock vLLM cannot load its reward head" in capsys.readouterr().err
