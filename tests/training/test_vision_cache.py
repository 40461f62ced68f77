"""Cached features of a frozen tower change no loss, are used, and stay within their bound."""

from pathlib import Path
from typing import Any

import pytest

from beholder.modeling.architectures import ARCHITECTURES
from beholder_training.bases import make_base
from beholder_training.branch import Branch
from beholder_training.data import Record, read_records, with_pairs
from beholder_training.pipeline import make_branches
from beholder_training.runs import train
from beholder_training.trainer import RewardTrainer
from beholder_training.vision_cache import VisionCache
from tests.training.runs import config, losses


@pytest.fixture
def records(world: Path) -> list[Record]:
    return with_pairs(read_records([world / "length" / "train.jsonl"]))[:8]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_features_give_the_same_losses(architecture: str, tmp_path: Path, records: list[Record]) -> None:
    base = tmp_path / "base"
    make_base(base, architecture)
    frozen = {"algorithm": "standard", "freeze_vision": True}  # but for the projector
    plain = losses(config(base, tmp_path / "out", **frozen), records)
    cached = losses(config(base, tmp_path / "out", vision_cache_gib=1.0, **frozen), records)
    for ours, theirs in zip(cached, plain, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def rewards(branch: Branch, cache: VisionCache, records: list[Record]) -> list[float]:
    groups = [group for record in records for group in branch.encode(record)]
    rows = [len(picture.tensors["pixel_values"]) for group in groups for picture in group.pictures]
    cache.expect([str(path) for record in records for path in record.images], rows)
    scores: list[float] = branch.model(**branch.collate_groups(groups)).tolist()
    return scores


def test_a_picture_is_encoded_once_and_the_bound_holds(tiny_base: Path, records: list[Record]) -> None:
    branch = Branch.from_base(str(tiny_base))
    branch.model.vision.requires_grad_(False)
    plain = [reward for scores in branch.score(records[:3]) for reward in scores]
    cache = VisionCache(branch.model.vision, 2**30)
    assert rewards(branch, cache, records[:2]) == pytest.approx(plain[:8], abs=1e-5)
    assert (cache.hits, cache.misses) == (0, 2)
    assert rewards(branch, cache, records[:3]) == pytest.approx(plain, abs=1e-5)
    assert (cache.hits, cache.misses) == (2, 3)

    cache.remove()
    small = VisionCache(branch.model.vision, 1)
    assert rewards(branch, small, records[:2]) == pytest.approx(plain[:8], abs=1e-5)
    assert rewards(branch, small, records[:2]) == pytest.approx(plain[:8], abs=1e-5)
    assert (small.hits, small.misses) == (0, 4)


def test_a_blank_image_is_encoded_once_a_run(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    frozen = {"algorithm": "sfc", "proxy_input": "blank_image", "freeze_vision": True}
    seen: list[int] = []

    class Watched(RewardTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            loss = super().training_step(model, inputs, num_items_in_batch)
            assert self.vision_caches[1] is not None
            seen.append(self.vision_caches[1].misses)
            return loss

    run = config(tiny_base, tmp_path / "out", **frozen)
    main, proxy = make_branches(run)
    train(run, records, main, proxy, Watched)
    assert seen == [1, 1, 1, 1]
    assert "forward" not in vars(proxy.model.vision if proxy else main)
