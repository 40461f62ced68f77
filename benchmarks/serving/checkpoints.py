"""Random checkpoints of a fixed seed: speed needs no training, but well-conditioned weights."""

import random
import tempfile
from pathlib import Path

import torch

from beholder.checkpoint import Dtype
from beholder_training import worlds
from beholder_training.bases import BENCHMARK_80M, QWEN3_VL_2B, TINY
from beholder_training.export import export
from benchmarks.random_branch import random_branch
from benchmarks.training import make_records

SIZES = {"tiny": TINY, "80m": BENCHMARK_80M, "2b": QWEN3_VL_2B}
DTYPES: dict[str, Dtype] = {"tiny": "float32", "80m": "bfloat16", "2b": "bfloat16"}
HEAD_STD = 0.5
CPU = torch.device("cpu")


def make_checkpoint(folder: Path, size: str, device: torch.device = CPU, dtype: Dtype | None = None) -> Path:
    """A checkpoint of `size` under `folder`, with calibration and golden samples, computed on `device`."""
    torch.manual_seed(0)
    random.seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        branch = random_branch(Path(scratch) / "base", "qwen3_vl", SIZES[size], device)
        torch.nn.init.normal_(branch.model.score.weight, std=HEAD_STD)
        records = make_records(Path(scratch), 16, 4, worlds.IMAGE_SIZE)
        export(
            branch,
            folder / size,
            records,
            base_model=size,
            algorithm="standard",
            data_fingerprint="0" * 64,
            dtype=dtype or DTYPES[size],
        )
    return folder / size
