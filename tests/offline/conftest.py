"""Fixtures of offline scoring: a small file of scenes, and settings for the fake engine on a tiny checkpoint."""

from pathlib import Path

import pytest

from beholder.settings import Settings, load_settings


@pytest.fixture(scope="session")
def scenes(world: Path) -> Path:
    """64 records of four responses, with a picture each."""
    return world / "length" / "responses.jsonl"


@pytest.fixture(scope="session")
def fake(tiny_checkpoint: Path) -> Settings:
    return load_settings({"checkpoint": tiny_checkpoint, "engine": "fake", "max_model_len": 1024})
