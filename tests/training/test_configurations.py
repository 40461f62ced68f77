"""The ready configurations say what was published, and every setting is checked."""

from dataclasses import fields
from pathlib import Path

import pytest

from beholder.errors import CheckpointError, DataError
from beholder_training.bases import make_base
from beholder_training.config import TrainingConfig, load_config, read_assignments
from beholder_training.data import read_records
from beholder_training.domains import DOMAINS
from beholder_training.pipeline import make_branches
from tests.training.runs import config

READY = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.yaml"))
GIVEN = {"train": ["a.jsonl"], "validation": ["b.jsonl"], "output": "rm"}


def test_there_is_one_for_every_published_size() -> None:
    assert [path.stem for path in READY] == ["internvl-2b", "internvl-8b", "qwen3-vl-2b", "qwen3-vl-8b"]


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_configuration_has_the_published_hyper_parameters(path: Path) -> None:
    ready = load_config(path, GIVEN)
    assert (ready.learning_rate, ready.warmup_ratio, ready.weight_decay, ready.adam_beta2) == (1e-5, 0.1, 0.05, 0.98)
    assert (ready.epochs, ready.max_length, ready.algorithm, ready.freeze_vision) == (1.0, 4096, "sfc", True)
    assert 16 * ready.step_prompts == 128
    assert ready.bf16
    assert ready.gradient_checkpointing
    assert ready.fsdp
    assert ready.image_options
    assert ready.image_options.get("crop_to_patches", "qwen" in path.stem)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_weights": [1.0, 2.0]}, "train_weights has 2 numbers for 1 train files"),
        ({"train_weights": -1}, "must not be negative"),
        ({"pair_loss": "hinge"}, "pair_loss 'hinge' is unknown: use one of bradley_terry, margin"),
        ({"bad_records": "ignore"}, "bad_records must be one of fail, skip"),
        ({"proxy_input": "video"}, "proxy_input must be one of text_only, blank_image"),
        ({"label_smoothing": 0.5}, r"label_smoothing must be in \[0, 0.5\)"),
        ({"vision_cache_gib": 1, "freeze_vision": False}, "needs freeze_vision"),
        ({"image_options": 3}, "image_options must be a mapping"),
        ({"token_budget": -1}, "token_budget must not be negative"),
        ({"proxy_warmup_steps": -5}, "proxy_warmup_steps must not be negative, not -5"),
        ({"proxy_warmup_steps": 0.1}, "proxy_warmup_steps must be int, not 0.1"),
        ({"proxy_warmup_steps": "ten"}, "proxy_warmup_steps must be int, not 'ten'"),
        ({"proxy_base": 3}, "proxy_base must be str, not 3"),
        ({"learning_rate": "nan"}, "learning_rate must be finite, not nan"),
        ({"epochs": float("inf")}, "epochs must be finite, not inf"),
        ({"train_weights": ["nan"]}, r"train_weights must be finite, not \[nan\]"),
        ({"proxy_learning_rate": 0}, "proxy_learning_rate must be positive"),
        ({"calibration_records": 0}, "calibration_records must be positive, not 0"),
        ({"algorithm": "standard", "save_proxy": True}, "save_proxy needs an algorithm that trains a proxy"),
        ({"algorithm": "standard", "proxy_base": "b"}, "proxy_base needs an algorithm that trains a proxy"),
        ({"algorithm": "constant", "proxy_warmup_steps": 3}, "proxy_warmup_steps needs an algorithm that trains"),
        ({"text_only": True}, "text_only=true is a baseline: set algorithm=standard"),
        ({"text_only": True, "algorithm": "sfc"}, "text_only=true is a baseline: set algorithm=standard"),
        ({"text_only": True, "algorithm": "standard", "vision_cache_gib": 1}, "vision_cache_gib needs images"),
        ({"lora_dropout": 0.1}, "lora_dropout needs lora_rank"),
        ({"lora_dropout": 2, "lora_rank": 4}, r"lora_dropout must be in \[0, 1\), not 2"),
        ({"lora_alpha": 0}, "lora_alpha must be positive, not 0"),
        ({"adam_beta2": 1.0}, r"adam_beta2 must be in \[0, 1\), not 1.0"),
        ({"weight_decay": -1}, "weight_decay must not be negative, not -1"),
        ({"warmup_ratio": 1.5}, r"warmup_ratio must be in \[0, 1\], not 1.5"),
        ({"gap_strength": -1}, "gap_strength must not be negative, not -1"),
        ({"gap_rate": -1}, "gap_rate must not be negative, not -1"),
        ({"exponent": -1}, "exponent must not be negative, not -1"),
        ({"logging_steps": -1}, "logging_steps must not be negative, not -1"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*32\), not -1"),
        ({"learning_rate": True}, "learning_rate must be a number, not True"),
        ({"train_weights": [True]}, "train_weights must be a number, not True"),
        ({"report_to": "foo"}, "report_to 'foo' is unknown or not installed"),
        ({"report_to": ""}, "report_to '' is unknown or not installed"),
        ({"report_to": None}, "report_to must be a text, not None"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_config(None, {"base": "b", **GIVEN, **settings})


def test_every_domain_is_of_settings_that_there_are() -> None:
    known = {field.name for field in fields(TrainingConfig)}
    assert {name for _, _, names in DOMAINS for name in names} <= known


@pytest.mark.parametrize("algorithm", ["standard", "constant"])
def test_a_baseline_may_be_text_alone_and_say_that_no_proxy_warms_up(algorithm: str) -> None:
    load_config(None, {"base": "b", **GIVEN, "algorithm": algorithm, "text_only": True, "proxy_warmup_steps": 0})


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"base: caf\xe9\n")
    with pytest.raises(DataError, match=r"run\.yaml: .*utf-8"):
        load_config(tmp_path / "run.yaml", GIVEN)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("image_options={a", "image_options cannot be read from '{a'"),
        ("output=2024-13-45", "output cannot be read from '2024-13-45'"),
        ("steps", "given as NAME=VALUE, not 'steps'"),
    ],
)
def test_an_assignment_that_cannot_be_read_is_named(assignment: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_assignments(["seed=1", assignment])


def test_image_options_change_the_pictures_and_are_kept(tmp_path: Path, world: Path) -> None:
    make_base(tmp_path / "base", "internvl")
    run = config(tmp_path / "base", tmp_path / "out", algorithm="standard", image_options={"max_patches": 2})
    main, _ = make_branches(run)
    main.encode(read_records([world / "length" / "train.jsonl"])[0])
    assert main.encoder.processor_settings()["max_patches"] == 2
    with pytest.raises(CheckpointError, match="crop_to_patches: false would not be served"):
        make_branches(config(tmp_path / "base", tmp_path / "out", image_options={"crop_to_patches": False}))
    with pytest.raises(CheckpointError, match="has no setting 'tiles'"):
        make_branches(config(tmp_path / "base", tmp_path / "out", image_options={"tiles": 1}))


def test_only_weightings_that_read_the_proxy_have_one() -> None:
    def needs(algorithm: str) -> bool:
        return TrainingConfig("b", Path("o"), [Path("t")], [Path("v")], algorithm=algorithm).needs_proxy

    assert [needs(name) for name in ("standard", "constant", "sfc", "sfc_shuffled")] == [False, False, True, True]


def test_an_epoch_ends_with_the_last_record() -> None:
    run = TrainingConfig("b", Path("o"), [Path("t")], [Path("v")], batch_prompts=8, accumulation=2)
    assert [run.main_steps(records) for records in (1, 16, 17)] == [1, 1, 2]
    assert run.main_steps(17, processes=2) == 1


@pytest.mark.parametrize(
    ("epochs", "records", "processes", "steps"),
    [(10, 33, 1, 20), (10, 33, 2, 10), (0.5, 33, 1, 1), (1.5, 33, 1, 3), (1.1, 320, 1, 11)],
)
def test_no_epoch_is_cut_short(epochs: float, records: int, processes: int, steps: int) -> None:
    run = TrainingConfig("b", Path("o"), [Path("t")], [Path("v")], batch_prompts=32, epochs=epochs)
    assert run.main_steps(records, processes) == steps
