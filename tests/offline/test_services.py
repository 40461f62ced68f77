"""Running services by URL: the same file as with an engine here, and the same errors."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from beholder.checkpoint import read_checkpoint
from beholder.engine.fake import FakeEngine
from beholder.errors import EngineUnavailable, FingerprintMismatch
from beholder.offline.backends import ServiceBackend
from beholder.offline.scoring import Job, score_file
from beholder.prompts import PromptRenderer
from beholder.settings import Settings
from tests.offline.scoring import read, score
from tests.service.serving import served
from tests.training.hostile import write_hostile


@pytest.fixture(scope="module")
def url(fake: Settings) -> Iterator[str]:
    checkpoint = read_checkpoint(fake.checkpoint)
    renderer = PromptRenderer.from_folder(fake.checkpoint)
    with served(fake, FakeEngine(fake, checkpoint), checkpoint, renderer) as url:
        yield url


def test_scores_are_those_of_an_engine_here(url: str, fake: Settings, scenes: Path, tmp_path: Path) -> None:
    score_file(Job(scenes, tmp_path / "there.jsonl", progress=False), ServiceBackend([url]))
    score(fake, scenes, tmp_path / "here.jsonl")
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()


def test_bad_records_have_the_codes_of_an_engine_here(url: str, fake: Settings, tmp_path: Path) -> None:
    hostile = write_hostile(tmp_path)
    score_file(Job(hostile, tmp_path / "there.jsonl", progress=False), ServiceBackend([url]))
    score(fake, hostile, tmp_path / "here.jsonl")
    there, here = ([(row["id"], row["index"], row["score"], row["error"] and row["error"]["code"]) for row in rows]
                   for rows in map(read, (tmp_path / "there.jsonl", tmp_path / "here.jsonl")))  # fmt: skip
    assert there == here


def test_another_checkpoint_than_at_the_start_ends_the_run(url: str, scenes: Path, tmp_path: Path) -> None:
    class Changed(ServiceBackend):
        """The service is replaced between its card and its first score."""

        @property
        def about(self) -> dict[str, str]:
            return {**super().about, "fingerprint": "b" * 64}

    with pytest.raises(FingerprintMismatch):
        score_file(Job(scenes, tmp_path / "out.jsonl", progress=False), Changed([url]))
    assert not (tmp_path / "out.jsonl").exists()


def test_no_service_is_said_before_anything_is_written(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="is a Beholder service running there"):
        score_file(Job(scenes, tmp_path / "out.jsonl", progress=False), ServiceBackend(["http://127.0.0.1:1"]))
    assert list(tmp_path.iterdir()) == []
