"""The contract between the halves, over HTTP: what training computed is what is served, or nothing is."""

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from beholder.checkpoint import read_checkpoint, write_manifest
from beholder.cli import main as beholder
from beholder.client import RewardClient
from beholder_training.bases import make_base
from beholder_training.branch import Branch
from beholder_training.data import Record, read_records
from beholder_training.demo.serving import served, service_process
from beholder_training.export import export
from benchmarks.parity import engine_scores, stock_scores
from tests.conftest import untrained
from tests.pictures import png
from tests.training.runs import store_tiling

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def records(world: Path) -> list[Record]:
    return read_records([world / "length" / "responses.jsonl"])[:10]


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, records: list[Record]) -> list[list[float]]:
    return Branch.from_checkpoint(tiny_checkpoint).score(records)


@pytest.fixture(scope="module")
def url(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tiny_checkpoint, tmp_path_factory.mktemp("log") / "service.log") as url:
        yield url


def test_our_service_on_vllm(url: str, records: list[Record], trained: list[list[float]]) -> None:
    with RewardClient(url) as client:
        for record, expected in zip(records, trained, strict=True):
            assert client.rank(record.prompt, record.images, record.responses).scores == pytest.approx(
                expected, abs=1e-4
            )


def test_internvl_is_served_on_the_tiles_that_it_trained_on(tmp_path: Path) -> None:
    """Its published folders store no tiles, which no engine goes by."""
    make_base(tmp_path / "base", "internvl")
    store_tiling(tmp_path / "base", {"crop_to_patches": False})
    branch = untrained(tmp_path / "base", seed=0)
    (tmp_path / "wide.png").write_bytes(png(300, 200))
    responses = ("Red.", "It is green, I am sure.")
    records = [Record("wide", "What colour is it?", (tmp_path / "wide.png",), responses, (1.0, 0.0), "wide")]
    trained = branch.score(records)[0]
    export(branch, tmp_path / "rm", records, base_model="tiny", algorithm="standard", data_fingerprint="0" * 64)
    served = asyncio.run(engine_scores(tmp_path / "rm", "transformers", "float32", records))[1]
    assert served == pytest.approx(trained, abs=1e-4)
    assert stock_scores(tmp_path / "rm", "float32", records) == pytest.approx(trained, abs=1e-4)


@pytest.fixture
def tampered(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint in which one weight was changed."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "tampered"
    shutil.copytree(tiny_checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"][0, 0] += 0.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_verify_names_the_changed_file(tampered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert beholder(["verify", str(tampered)]) == 1
    error = capsys.readouterr().err
    assert str(tampered / "model.safetensors") in error
    assert "sha256" in error


def test_with_the_hashes_made_to_match_the_service_stays_unready_and_names_the_sample(
    tampered: Path, tmp_path: Path
) -> None:
    write_manifest(tampered, read_checkpoint(tampered).manifest)
    samples = [sample.id for sample in read_checkpoint(tampered).golden()]
    with service_process(tampered, tmp_path / "service.log") as (process, url):
        detail = _golden_verdict(url)
        assert any(repr(sample) in detail for sample in samples), detail
        body = {"prompt": "?", "images": [], "response": "Yes."}
        refused = httpx.post(f"{url}/score", json=body)
        assert refused.status_code == 503
        assert "scores" not in refused.json()
        assert httpx.get(f"{url}/livez").status_code == 200
        assert process.poll() is None


def _golden_verdict(url: str) -> str:
    """What /readyz says once the golden samples were scored."""
    for _ in range(400):
        try:
            answer = httpx.get(f"{url}/readyz")
            assert answer.status_code == 503
            if answer.json()["code"] == "golden-mismatch":
                return str(answer.json()["detail"])
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.25)
    raise AssertionError("the golden samples were never judged")
