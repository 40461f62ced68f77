"""What a model was trained on (images, text, blanks) is what a checkpoint says, and is evaluated and served on."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from beholder.adopting.adopt import adopt
from beholder.checkpoint import Checkpoint
from beholder.errors import CheckpointError
from beholder.local import golden_locally, rank_locally
from beholder.settings import Settings, load_settings
from beholder_training.branch import Branch
from beholder_training.config import TrainingConfig
from beholder_training.data import Record, read_records
from beholder_training.evaluation.ablations import ABLATIONS
from beholder_training.evaluation.inputs import read_models, text_only_branch
from beholder_training.export import export
from beholder_training.pipeline import run_training

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def records(world: Path) -> list[Record]:
    return read_records([world / "length" / "responses.jsonl"])[:4]


@pytest.fixture(scope="module")
def text_only(tiny_base: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Branch]:
    """A text-only run, and the branch that came out of it."""
    here = world / "length"
    return run_training(
        TrainingConfig(
            base=str(tiny_base),
            output=tmp_path_factory.mktemp("runs") / "text",
            train=[here / "train_pairs.jsonl"],
            validation=[here / "responses.jsonl"],
            algorithm="standard",
            text_only=True,
            steps=2,
            batch_prompts=4,
            learning_rate=1e-3,
        )
    )


def test_a_text_only_run_says_so_and_is_read_so(
    text_only: tuple[Checkpoint, Branch], records: list[Record], world: Path
) -> None:
    checkpoint, branch = text_only
    assert checkpoint.manifest.input == "text"
    assert not any(sample.images for sample in checkpoint.golden())
    (model,) = read_models([checkpoint.folder])
    trained = branch.score(records)
    assert model.branch.score(records) == [pytest.approx(rewards, abs=1e-5) for rewards in trained]
    assert ABLATIONS["without_images"].change(model.branch, records) is None  # nothing to take away
    held_out = model.branch.score(read_records([world / "length" / "responses.jsonl"]))
    assert checkpoint.manifest.calibration is not None
    assert checkpoint.manifest.calibration.mean == pytest.approx(np.mean(held_out), abs=1e-5)


def test_it_is_served_as_it_was_trained_whatever_is_sent(
    text_only: tuple[Checkpoint, Branch], records: list[Record]
) -> None:
    checkpoint, branch = text_only
    assert served(checkpoint.folder, records[0]) == pytest.approx(branch.score(records[:1])[0], abs=1e-4)
    golden = asyncio.run(golden_locally(settings(checkpoint.folder)))
    assert all(result.passed for result in golden)


@pytest.fixture(scope="module")
def with_proxies(tiny_base: Path, records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Branch]:
    """Proxies by the folder that a checkpoint keeps them in, one of each input."""
    folder, proxies = tmp_path_factory.mktemp("proxies"), {}
    for name in ("text", "blank_image"):
        torch.manual_seed(1)
        main, proxy = Branch.from_base(str(tiny_base)), Branch.from_base(str(tiny_base), sees_images=name != "text")
        proxy.blank_images = name == "blank_image"
        for branch in (main, proxy):
            torch.nn.init.normal_(branch.model.score.weight, std=0.5)
        about = {"base_model": "tiny", "algorithm": "sfc", "data_fingerprint": "0" * 64}
        export(main, folder / name, records, proxy=proxy, **about)  # type: ignore[arg-type]
        proxies[str(folder / name)] = proxy
    return proxies


def test_a_kept_proxy_is_read_as_it_was_trained(with_proxies: dict[str, Branch], records: list[Record]) -> None:
    found = []
    for folder, proxy in with_proxies.items():
        (model,) = read_models([Path(folder)])
        assert model.branch.input == "image"
        assert model.text_only is not None
        assert model.text_only.input == proxy.input
        found.append(model.text_only.score(records))
        assert found[-1] == [pytest.approx(rewards, abs=1e-5) for rewards in proxy.score(records)]
    assert found[0] != found[1]


def test_an_adopted_proxy_is_served_as_it_was_trained(
    with_proxies: dict[str, Branch], records: list[Record], tmp_path: Path
) -> None:
    for folder, proxy in with_proxies.items():
        adopted = adopt(Path(folder) / "proxy", tmp_path / proxy.input)
        assert adopted.manifest.input == proxy.input
        assert any(sample.images for sample in adopted.golden()) == (proxy.input == "blank_image")
        assert served(adopted.folder, records[0]) == pytest.approx(proxy.score(records[:1])[0], abs=1e-4)
        assert text_only_branch(adopted.folder).input == proxy.input


def test_a_proxy_that_does_not_say_what_it_reads_is_taken_to_read_text(
    with_proxies: dict[str, Branch], tmp_path: Path
) -> None:
    shutil.copytree(Path(next(iter(with_proxies))) / "proxy", tmp_path / "proxy")
    said = tmp_path / "proxy" / "reward_input.json"
    said.write_text('{"input": "sound"}')
    with pytest.raises(CheckpointError, match=r"reward_input\.json: input"):
        text_only_branch(tmp_path / "proxy")
    said.unlink()
    assert text_only_branch(tmp_path / "proxy").input == "text"
    assert adopt(tmp_path / "proxy", tmp_path / "adopted", model_input="text").manifest.input == "text"


def settings(folder: Path) -> Settings:
    return load_settings({"checkpoint": folder, "engine": "transformers", "log_level": "error"})


def served(folder: Path, record: Record) -> list[float]:
    """Scores of the responses to a record that has an image, by the engine that serves."""
    assert record.images
    return asyncio.run(rank_locally(settings(folder), record.prompt, record.images, record.responses)).scores
