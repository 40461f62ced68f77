"""The three architectures that `tiny_checkpoint` is not: vLLM serves the score that training computed."""

from pathlib import Path

import pytest
import torch

from beholder.checkpoint import read_checkpoint
from beholder.engine import create_engine
from beholder.golden import score_golden
from beholder.prompts import PromptRenderer
from beholder.settings import load_settings
from beholder_training.bases import make_base
from beholder_training.branch import Branch
from beholder_training.data import read_records
from beholder_training.export import export
from tests.conftest import HEAD_STD

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),  # vLLM never closes its ZeroMQ context
]


@pytest.mark.parametrize("architecture", ["qwen2_5_vl", "internvl", "llava"])
async def test_vllm_serves_the_trained_score(architecture: str, tmp_path: Path, world: Path) -> None:
    make_base(tmp_path / "base", architecture)
    torch.manual_seed(0)
    branch = Branch.from_base(str(tmp_path / "base"))
    torch.nn.init.normal_(branch.model.score.weight, std=HEAD_STD)
    held_out = read_records([world / "length" / "responses.jsonl"])[:8]
    folder = tmp_path / "checkpoint"
    export(branch, folder, held_out, base_model="tiny", algorithm="standard", data_fingerprint="0" * 64)

    checkpoint = read_checkpoint(folder)
    settings = load_settings({"checkpoint": folder, "max_model_len": 2048, "engine_args": {"max_num_seqs": 16}})
    engine = create_engine(settings, checkpoint)
    await engine.start()
    try:
        results = await score_golden(engine, PromptRenderer.from_folder(folder), checkpoint, "float32")
    finally:
        await engine.stop()
    assert max(abs(result.served - result.trained) for result in results) < 1e-4
