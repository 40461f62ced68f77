"""An optimiser step is the same however it is split: by accumulation, by tokens, packed or padded."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import TrainingArguments

from beholder.errors import PromptTooLong
from beholder_training.batching import Collator, Item, micro_batch, split, spread
from beholder_training.branch import Branch
from beholder_training.data import Record, read_records, with_pairs
from beholder_training.losses import WEIGHTINGS
from beholder_training.trainer import RewardTrainer
from tests.training.runs import config, losses, run


@pytest.fixture
def records(world: Path) -> list[Record]:
    return with_pairs(read_records([world / "length" / "train.jsonl"]))[:16]


def equal(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert len(ours) == len(theirs)
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one == pytest.approx(other, abs=1e-4), step


@pytest.mark.parametrize("algorithm", WEIGHTINGS)
def test_accumulation_changes_no_loss(tiny_base: Path, tmp_path: Path, records: list[Record], algorithm: str) -> None:
    """The weightings with a batch mean or order among them: it is the whole step's."""
    settings: dict[str, Any] = {"algorithm": algorithm, "steps": 3, "centring": 0.01, "pair_loss": "dynamic_scaling"}
    whole = losses(config(tiny_base, tmp_path / "out", batch_prompts=8, **settings), records)
    parts = losses(config(tiny_base, tmp_path / "out", batch_prompts=2, accumulation=4, **settings), records)
    equal(parts, whole)
    assert len({step["loss"] for step in whole}) > 1


def test_a_token_budget_and_padding_change_no_loss(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    whole = losses(config(tiny_base, tmp_path / "out", batch_prompts=8), records)
    equal(losses(config(tiny_base, tmp_path / "out", batch_prompts=8, token_budget=300), records), whole)
    equal(losses(config(tiny_base, tmp_path / "out", batch_prompts=8, packed=False), records), whole)


def test_gradient_checkpointing_changes_no_loss(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    whole = losses(config(tiny_base, tmp_path / "out", algorithm="sfc"), records)
    equal(losses(config(tiny_base, tmp_path / "out", algorithm="sfc", gradient_checkpointing=True), records), whole)


def test_bf16_trains_near_float32(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    whole = losses(config(tiny_base, tmp_path / "out", algorithm="sfc"), records)
    half = losses(config(tiny_base, tmp_path / "out", algorithm="sfc", bf16=True), records)
    for one, other in zip(half, whole, strict=True):
        assert one == pytest.approx(other, abs=0.05)
        assert one != pytest.approx(other, abs=1e-6)


def test_a_blank_image_proxy_sees_white_and_as_many_images(
    tiny_base: Path, tmp_path: Path, records: list[Record]
) -> None:
    settings = config(tiny_base, tmp_path / "out", algorithm="sfc", proxy_input="blank_image", steps=1)
    _, main, proxy = run(settings, records[:4])
    assert proxy is not None
    batch = micro_batch(Collator(main, proxy)(list(enumerate(records[:2])))["items"], main, proxy)
    assert batch.proxy is not None
    pixels = batch.proxy["pictures"]["pixel_values"]
    assert len(batch.proxy["pictures"]["image_grid_thw"]) == 2
    assert len(pixels.unique()) == 3  # white, after each colour's normalisation
    assert pixels.min() > 1.9


@pytest.fixture
def items(tiny_base: Path, records: list[Record]) -> list[Item]:
    return Collator(Branch.from_base(str(tiny_base)), None)(list(enumerate(records[:6])))["items"]


def test_a_pairs_gap_is_the_difference_of_its_ratings(tiny_base: Path, records: list[Record]) -> None:
    main = Branch.from_base(str(tiny_base))
    rated = [replace(records[0], qualities=(2.0, 0.5, 5.0, 2.0)), replace(records[1], qualities=(1.0, 1.0, 1.0, 4.0))]
    batch = micro_batch(Collator(main, None)(list(enumerate(rated)))["items"], main, None)
    ratings = torch.tensor([*rated[0].qualities, *rated[1].qualities])
    assert len(batch.gaps) == 5 + 3
    assert batch.gaps.equal(ratings[batch.pairs[:, 0]] - ratings[batch.pairs[:, 1]])


def test_split_sorts_by_length_and_keeps_the_budget(items: list[Item]) -> None:
    assert [len(part) for part in split(items, prompts=4)] == [4, 2]
    budget = 2 * max(item.length for item in items)
    parts = split(items, prompts=4, token_budget=budget)
    assert [item.index for item in split(items, prompts=6)[0]] == [0, 1, 2, 3, 4, 5]
    lengths = [item.length for part in parts for item in part]
    assert lengths == sorted((item.length for item in items), reverse=True)
    assert len(set(lengths)) > 1
    assert {item.index for part in parts for item in part} == {0, 1, 2, 3, 4, 5}
    assert all(len(part) * max(item.length for item in part) <= budget for part in parts)


def test_the_budget_is_the_proxys_too_where_it_has_more_tokens(tiny_base: Path, records: list[Record]) -> None:
    """The blank image has more than the world's pictures."""
    main, proxy = (Branch.from_base(str(tiny_base)) for _ in range(2))
    proxy.blank_images = True
    items = Collator(main, proxy)(list(enumerate(records[:4])))["items"]
    longest = max(len(group.packed.token_ids) for item in items for group in item.proxy)
    assert longest > max(item.length for item in items)
    assert [len(part) for part in split(items, prompts=4, token_budget=4 * longest)] == [4]
    assert [len(part) for part in split(items, prompts=4, token_budget=4 * longest - 1)] == [3, 1]


def test_an_item_above_the_budget_stands_alone(items: list[Item]) -> None:
    assert [len(part) for part in split(items, prompts=4, token_budget=1)] == [1] * 6


def test_spread_gives_every_process_as_many_forwards_and_no_pair_twice(items: list[Item]) -> None:
    parts = spread(split(items[:2], prompts=4), 3)
    assert len(parts) == 3
    assert [len(part[0].pairs) for part in parts] == [3, 3, 0]


@pytest.mark.parametrize(
    ("step", "process", "indices"),
    [(0, 0, [0, 1]), (0, 1, [0, 1]), (1, 0, [0]), (1, 1, []), (2, 1, [0, 1]), (3, 0, [0])],
)
def test_what_fills_an_epochs_last_step_up_is_left_out(
    tiny_base: Path, tmp_path: Path, records: list[Record], step: int, process: int, indices: list[int]
) -> None:
    """Five records, two a process and step: the third step begins the next epoch."""
    main = Branch.from_base(str(tiny_base))
    arguments = TrainingArguments(str(tmp_path / "out"), use_cpu=True)
    settings = config(tiny_base, tmp_path / "out", batch_prompts=2)
    trainer = RewardTrainer(settings, main, None, 0, arguments, records[:5])
    given = Collator(main, None)(list(enumerate(records[:2])))["items"]
    trainer.state.global_step = step
    with patch.object(TrainingArguments, "world_size", 2), patch.object(TrainingArguments, "process_index", process):
        own = trainer._own(given)
    assert [item.index for item in own if item.pairs] == indices
    assert own


def test_items_travel_from_a_loaders_workers(items: list[Item]) -> None:
    copy = pickle.loads(pickle.dumps(items[0]))
    assert (copy.name, copy.pairs, copy.length) == (items[0].name, items[0].pairs, items[0].length)


def test_a_record_that_cannot_be_encoded_is_named(tiny_base: Path, records: list[Record]) -> None:
    main = Branch.from_base(str(tiny_base), max_length=8)
    with pytest.raises(PromptTooLong, match=r"train\.jsonl:1: the conversation has \d+ tokens"):
        Collator(main, None)([(0, records[0])])
