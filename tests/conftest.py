"""What every test may use: tiny checkpoints, made once a session by training's own export."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from beholder_training.branch import Branch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never reach for a hub
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

HEAD_STD = 0.5  # a head of this scale spreads an untrained model's rewards over a few units


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small built-in world."""
    from beholder_training.worlds import WorldSize, make_world

    folder = tmp_path_factory.mktemp("data") / "world"
    make_world(folder, WorldSize(seeing=64, train=64, test=64), progress=False)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-VL base of half a million random weights."""
    from beholder_training.bases import make_base

    folder = tmp_path_factory.mktemp("bases") / "qwen3_vl"
    make_base(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, world: Path) -> Path:
    """An exported float32 checkpoint of the tiny base, untrained. Read only: copy it to change it."""
    from beholder_training.data import read_records
    from beholder_training.export import export

    held_out = read_records([world / "length" / "responses.jsonl"])[:16]
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    branch = untrained(tiny_base, seed=0)
    export(branch, folder, held_out, base_model="tiny", algorithm="standard", data_fingerprint="0" * 64)
    return folder


@pytest.fixture(scope="session")
def proxy_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A proxy/ with another head than `tiny_checkpoint`, adopted as a checkpoint of its own. Read only."""
    from beholder.adopting.adopt import adopt
    from beholder_training.export import write_model

    folder = tmp_path_factory.mktemp("proxies")
    (folder / "proxy").mkdir()
    write_model(folder / "proxy", untrained(tiny_base, seed=1), "float32")
    adopt(folder / "proxy", folder / "adopted")
    return folder / "adopted"


def untrained(base: Path, seed: int) -> "Branch":
    """A branch with a random head."""
    import torch

    from beholder_training.branch import Branch

    torch.manual_seed(seed)
    branch = Branch.from_base(str(base))
    torch.nn.init.normal_(branch.model.score.weight, std=HEAD_STD)
    return branch
