"""Random checkpoints of a fixed seed: speed needs no training, but well-conditioned weights."""

import random
import tempfile
from pathlib import Path

import torch

from beholder.checkpoint import Dtype
from beholder_training import worlds
from beholder_training.bases import BENCHMARK_80M, TINY, make_base
from beholder_training.branch import Branch
from beholder_training.export import export
from benchmarks.training import make_records

SIZES = {"tiny": TINY, "80m": BENCHMARK_80M}
DTYPES: dict[str, Dtype] = {"tiny": "float32", "80m": "bfloat16"}
HEAD_STD = 0.5


def make_checkpoint(folder: Path, size: str) -> Path:
    """A checkpoint of `size` under `folder`, with calibration and golden samples."""
    torch.manual_seed(0)
    random.seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        make_base(base, "qwen3_vl", SIZES[size])
        branch = Branch.from_base(str(base))
        torch.nn.init.normal_(branch.model.score.weight, std=HEAD_STD)
        records = make_records(Path(scratch), 16, 4, worlds.IMAGE_SIZE)
        export(
            branch,
            folder / size,
            records,
            base_model=size,
            algorithm="standard",
            data_fingerprint="0" * 64,
            dtype=DTYPES[size],
        )
    return folder / size
