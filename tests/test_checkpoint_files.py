"""Files of a checkpoint: who may read them, what they may hold, and what shows that they were changed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from beholder.checkpoint import (
    GOLDEN_FOLDER,
    GOLDEN_NAME,
    INPUT_NAME,
    MANIFEST_NAME,
    GoldenSample,
    read_checkpoint,
    read_input,
    seal,
    write_golden,
    write_manifest,
)
from beholder.cli import main as beholder
from beholder.errors import CheckpointCorrupt, CheckpointError

NOT_UTF8 = '{"input": "caf\u00e9"}'.encode("latin-1")


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that may be changed."""
    folder = tmp_path / "copied"
    shutil.copytree(tiny_checkpoint, folder)
    return folder


def test_everyone_may_read_a_checkpoint(tiny_checkpoint: Path) -> None:
    files = [path for path in tiny_checkpoint.rglob("*") if path.is_file()]
    assert [path for path in files if path.stat().st_mode & 0o444 != 0o444] == []


def test_a_file_for_its_owner_alone_is_opened_to_readers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    weights.chmod(0o600)
    write_manifest(tmp_path, read_checkpoint(tiny_checkpoint).manifest)
    assert weights.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x1c", "\r", "\r\n"], ids=ascii)
def test_golden_samples_may_hold_any_line_separator(copied: Path, separator: str) -> None:
    sample = GoldenSample(id="separated", prompt=f"a{separator}b", response=f"{separator}c", score=1.0)
    write_golden(copied, [sample, sample])
    assert read_checkpoint(copied).golden() == [sample, sample]


def test_a_file_that_is_not_utf8_is_named(copied: Path) -> None:
    (copied / GOLDEN_FOLDER / GOLDEN_NAME).write_bytes(NOT_UTF8)
    with pytest.raises(CheckpointError, match=rf"{GOLDEN_NAME}: content: Invalid JSON"):
        read_checkpoint(copied).golden()
    (copied / INPUT_NAME).write_bytes(NOT_UTF8)
    with pytest.raises(CheckpointError, match=rf"{INPUT_NAME}: content: Invalid JSON"):
        read_input(copied)
    (copied / MANIFEST_NAME).write_bytes(NOT_UTF8)
    with pytest.raises(CheckpointError, match=rf"{MANIFEST_NAME}: content: Invalid JSON"):
        read_checkpoint(copied)


EDITS: list[dict[str, Any]] = [
    {"calibration": None},
    {"input": "text"},
    {"dtype": "bfloat16"},
    {"processor": {"backend": "pil"}},
    {"within_prompt_spread": 100.0},
    {"files": {}},
]


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_an_edited_manifest_is_refused(copied: Path, edit: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(CheckpointCorrupt, match="its fingerprint is not that of its contents: it was changed"):
        read_checkpoint(copied)
    assert beholder(["verify", str(copied)]) == 1
    assert f"{path}: its fingerprint is not that of its contents" in capsys.readouterr().err


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_checkpoints_that_may_score_differently_share_no_fingerprint(
    tiny_checkpoint: Path, edit: dict[str, Any]
) -> None:
    manifest = read_checkpoint(tiny_checkpoint).manifest
    contents = json.loads(manifest.model_dump_json())
    assert seal(contents) == manifest.fingerprint
    assert seal(json.loads(manifest.model_copy(update=edit).model_dump_json())) != manifest.fingerprint


def test_a_setting_that_a_later_version_adds_leaves_the_fingerprint(copied: Path) -> None:
    """It is of what the file says: here without what has a default."""
    contents = json.loads((copied / MANIFEST_NAME).read_text())
    del contents["input"], contents["evaluation"]
    contents["fingerprint"] = seal(contents)
    (copied / MANIFEST_NAME).write_text(json.dumps(contents))
    assert read_checkpoint(copied).manifest.input == "image"


def test_a_checkpoint_from_before_fingerprints_is_told_from_an_edited_one(copied: Path) -> None:
    contents = json.loads((copied / MANIFEST_NAME).read_text())
    del contents["fingerprint"]
    (copied / MANIFEST_NAME).write_text(json.dumps(contents))
    with pytest.raises(CheckpointError, match="an older version wrote it"):
        read_checkpoint(copied)


def test_a_manifest_that_is_written_in_another_form_says_the_same(copied: Path) -> None:
    path, before = copied / MANIFEST_NAME, read_checkpoint(copied).fingerprint
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items())), indent=8))
    assert read_checkpoint(copied).fingerprint == before
    assert len(before) == 64


def test_what_json_has_no_number_for_does_not_change_the_fingerprint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As the error of a model whose bf16 scores overflow."""
    manifest = read_checkpoint(tiny_checkpoint).manifest
    shutil.copy(tiny_checkpoint / "model.safetensors", tmp_path)
    nan = float("nan")
    written = write_manifest(tmp_path, manifest.model_copy(update={"bf16_error": nan, "evaluation": {"error": nan}}))
    assert read_checkpoint(tmp_path).fingerprint == written.fingerprint


def test_an_error_that_says_nothing_gives_its_type(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bytes:
        raise OSError

    checkpoint = read_checkpoint(copied)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(CheckpointError, match=f"{GOLDEN_NAME}: OSError"):
        checkpoint.golden()
