"""Several engines on one machine give the file that one gives, and fail as one does."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from beholder.errors import ConfigurationError, EngineUnavailable
from beholder.offline.engines import RUN, EnginesBackend, gpu_of
from beholder.offline.scoring import Job, Summary, score_file
from beholder.settings import Settings, load_settings
from tests.offline.scoring import read, score, write

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two whole runs and a part of one, with bad records among them."""
    records: list[Any] = [{"prompt": f"{n}?", "responses": ["A", "B" * (n + 1)]} for n in range(2 * RUN + 5)]
    records[RUN] = {"prompt": "?", "responses": ["A", " "]}
    records[-1] = ["not an object"]
    return write(tmp_path / "data.jsonl", records)


def score_with(engines: int, settings: Settings, data: Path, output: Path) -> Summary:
    return score_file(Job(data, output, progress=False), EnginesBackend(settings, engines))


def test_the_file_is_that_of_one_engine(fake: Settings, data: Path, tmp_path: Path) -> None:
    expected = score(fake, data, tmp_path / "one.jsonl")
    assert str(score_with(2, fake, data, tmp_path / "two.jsonl")) == str(expected)
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_two_models_score_as_one(tiny_checkpoint: Path, scenes: Path, tmp_path: Path) -> None:
    """One run: the second engine has nothing to do."""
    settings = load_settings({"checkpoint": tiny_checkpoint, "engine": "transformers"})
    few = write(scenes.parent / "few.jsonl", read(scenes)[:20])
    score(settings, few, tmp_path / "one.jsonl")
    score_with(2, settings, few, tmp_path / "two.jsonl")
    one, two = read(tmp_path / "one.jsonl"), read(tmp_path / "two.jsonl")
    assert [row["score"] for row in two] == pytest.approx([row["score"] for row in one], abs=1e-5)
    assert [{**row, "score": 0, "normalized": 0} for row in two] == [
        {**row, "score": 0, "normalized": 0} for row in one
    ]


def test_an_engine_that_dies_ends_the_run_which_goes_on_later(fake: Settings, data: Path, tmp_path: Path) -> None:
    """The first engine dies in its second run."""
    output = tmp_path / "out.jsonl"
    dying = fake.model_copy(update={"engine_args": {"die_after": 2 * RUN + 2}})
    with pytest.raises(EngineUnavailable, match="an engine failed: the engine"):
        score_with(2, dying, data, output)
    assert not output.exists()
    score_with(2, fake, data, output)
    score(fake, data, tmp_path / "whole.jsonl")
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_killed_process_is_named_and_leaves_none_behind(fake: Settings, data: Path, tmp_path: Path) -> None:
    slow = fake.model_copy(update={"engine_args": {"delay_s": 60}})

    def kill_one() -> None:
        while len(children := multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        pid = children[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_one)
    thread.start()
    with pytest.raises(EngineUnavailable, match="an engine's process ended with status -9"):
        score_with(2, slow, data, tmp_path / "out.jsonl")
    thread.join()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, ["0", "1", "2", "0"]), ("5, GPU-ab,2", ["5", "GPU-ab", "2", "5"])]
)
def test_engines_take_the_cards_in_turn(
    visible: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu_of(share) for share in range(4)] == expected
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert gpu_of(0) is None


def test_vllm_is_refused(fake: Settings) -> None:
    with pytest.raises(ConfigurationError, match="vLLM uses the whole machine"):
        EnginesBackend(fake.model_copy(update={"engine": "vllm"}), 2)
