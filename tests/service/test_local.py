"""Ranking in this process trusts a checkpoint as the service does: its files, then its golden samples."""

import asyncio
import shutil
from pathlib import Path

import pytest

from beholder import local
from beholder.errors import CheckpointCorrupt, GoldenMismatch, PromptTooLong, TooManyImages
from beholder.local import rank_locally
from beholder.settings import load_settings
from tests.service.stand_in import StandInEngine


@pytest.fixture
def changed(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of which one file is no more what reward.json says."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    with (folder / "config.json").open("a") as file:
        file.write("\n")
    return folder


def test_a_file_that_was_changed_is_refused_unless_told_otherwise(changed: Path) -> None:
    settings = load_settings({"checkpoint": changed, "engine": "fake"})
    with pytest.raises(CheckpointCorrupt, match=r"config\.json"):
        asyncio.run(rank_locally(settings, "?", [], ["A"]))
    trusting = settings.model_copy(update={"verify_files": False})
    assert len(asyncio.run(rank_locally(trusting, "?", [], ["A"])).scores) == 1


def test_golden_samples_are_checked(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "create_engine", lambda settings, checkpoint: StandInEngine({}))
    settings = load_settings({"checkpoint": tiny_checkpoint, "engine": "transformers"})
    with pytest.raises(GoldenMismatch):
        asyncio.run(rank_locally(settings, "?", [], ["A"]))


def test_the_fake_engine_has_none_to_check(tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load_settings({"checkpoint": tiny_checkpoint, "engine": "fake"})
    ranking = asyncio.run(rank_locally(settings, "?", [], ["A", "B"]))
    assert max(ranking.scores) == ranking.scores[ranking.best]
    assert "the fake engine's scores mean nothing" in caplog.text


def test_too_long_a_prompt_is_cut_where_the_settings_say_so(tiny_checkpoint: Path) -> None:
    refusing = load_settings({"checkpoint": tiny_checkpoint, "engine": "fake", "max_model_len": 256})
    long = "word " * 500 + "?"
    with pytest.raises(PromptTooLong):
        asyncio.run(rank_locally(refusing, long, [], ["A", "B"]))
    cutting = refusing.model_copy(update={"overlong": "truncate"})
    assert asyncio.run(rank_locally(cutting, long, [], ["A", "B"])).truncated == [True, True]
    assert asyncio.run(rank_locally(cutting, "?", [], ["A", "B"])).truncated == [False, False]


def test_more_images_than_the_settings_accept(tiny_checkpoint: Path, golden_image: Path) -> None:
    settings = load_settings({"checkpoint": tiny_checkpoint, "engine": "fake", "max_images": 1})
    with pytest.raises(TooManyImages, match="2 images, at most 1"):
        asyncio.run(rank_locally(settings, "?", [golden_image] * 2, ["A"]))
