"""The served score is the trained score, on every architecture and every real engine; see benchmarks/parity.py."""

import pytest

from beholder.modeling.architectures import ARCHITECTURES
from benchmarks.parity import measure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_engine_gives_the_trained_scores_in_float32(architecture: str) -> None:
    """Ours alone and under concurrency, and stock vLLM with no plugin of ours: at most 1e-4 apart."""
    pytest.importorskip("vllm")
    rows = measure(architecture, ("float32",), prompts=12, responses=4, stock_prompts=12)
    assert {row.engine for row in rows} == {"vllm", "transformers", "stock vLLM"}
    for row in rows:
        assert max(row.alone, row.concurrent) <= 1e-4, row


def test_bfloat16_keeps_the_order_of_what_float32_tells_apart() -> None:
    pytest.importorskip("vllm")
    for row in measure("qwen3_vl", ("bfloat16",), prompts=50, responses=8, stock_prompts=0):
        assert row.pair_agreement is not None
        assert row.top1_agreement is not None
        assert min(row.pair_agreement, row.top1_agreement) >= 0.98, row
