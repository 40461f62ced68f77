"""The training loop on a tiny base: what may influence what."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments, set_seed

from beholder.modeling.architectures import ARCHITECTURES
from beholder_training.bases import make_base
from beholder_training.batching import Collator, micro_batch
from beholder_training.branch import Branch
from beholder_training.branches import TwoBranches, branch_parameters
from beholder_training.config import TrainingConfig
from beholder_training.data import Record, read_records, with_pairs
from beholder_training.runs import train


@pytest.fixture
def records(world: Path) -> list[Record]:
    return with_pairs(read_records([world / "length" / "train.jsonl"]))[:16]


def config(base: Path, output: Path, **settings: Any) -> TrainingConfig:
    data = [Path("unused.jsonl")]
    defaults: dict[str, Any] = {"steps": 4, "batch_prompts": 4, "learning_rate": 1e-3, "freeze_vision": False}
    return TrainingConfig(base=str(base), output=output, train=data, validation=data, **(defaults | settings))


def trained(base: Path, output: Path, records: list[Record], **settings: Any) -> list[float]:
    """Rewards of the first record's responses after training."""
    run = config(base, output, **settings)
    set_seed(0)
    main = Branch.from_base(run.base)
    proxy = Branch.from_base(run.base, sees_images=False) if run.needs_proxy else None
    train(run, records, main, proxy)
    return main.score(records[:1])[0]


def test_a_seed_gives_the_same_model_twice(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    first, second = (trained(tiny_base, tmp_path / "out", records, algorithm="sfc") for _ in range(2))
    assert first == second


def test_accumulation_gives_the_step_of_the_whole_batch(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    """The loss is a mean over all pairs of an optimiser step, however it is split."""
    whole = trained(tiny_base, tmp_path / "out", records, algorithm="sfc", batch_prompts=8, steps=2)
    split = trained(tiny_base, tmp_path / "out", records, algorithm="sfc", batch_prompts=2, accumulation=4, steps=2)
    assert split == pytest.approx(whole, abs=1e-4)


def test_a_process_takes_one_card_of_several(
    tiny_base: Path, tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer would wrap the model in DataParallel, which cuts packed rows apart."""

    class Cards(TrainingArguments):
        def __post_init__(self) -> None:
            setup: Any = super().__post_init__
            setup()
            self._n_gpu = 4

    monkeypatch.setattr("beholder_training.runs.TrainingArguments", Cards)
    run = config(tiny_base, tmp_path / "out", algorithm="standard", steps=1)
    trainer = train(run, records, Branch.from_base(str(tiny_base)), None)
    assert trainer.args.n_gpu == 1


def test_the_proxy_is_warmed_up_alone(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    """With no main step left after the warm-up, the main branch has not moved and the proxy has."""
    run = config(tiny_base, tmp_path / "out", algorithm="proxy_balanced", proxy_warmup_steps=3, steps=1)
    set_seed(0)
    main, proxy = Branch.from_base(run.base), Branch.from_base(run.base, sees_images=False)
    run.learning_rate, run.proxy_learning_rate = 1e-30, 1e-3
    before = [p.detach().clone() for p in main.model.parameters()]
    head = proxy.model.score.weight.detach().clone()
    train(run, records, main, proxy)
    moved = [(old - new).abs().max() for old, new in zip(before, main.model.parameters(), strict=True)]
    assert max(moved) < 1e-20  # the one main step has the learning rate 1e-30
    assert not torch.equal(head, proxy.model.score.weight)


@pytest.mark.parametrize("settings", [{}, {"vision_cache_gib": 1.0}, {"lora_rank": 2}], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_frozen_vision_tower_stays_as_it_is_and_in_eval_mode_and_its_projector_trains(
    architecture: str, settings: dict[str, Any], tmp_path: Path, records: list[Record]
) -> None:
    make_base(tmp_path / "base", architecture)
    run = config(tmp_path / "base", tmp_path / "out", algorithm="standard", steps=2, freeze_vision=True, **settings)
    main = Branch.from_base(run.base)
    pictures = {
        name: parameter.detach().clone()
        for name, parameter in main.model.backbone.named_parameters()
        if not name.startswith("language_model.")
    }
    train(run, records, main, None)
    trained = dict(main.model.backbone.named_parameters())
    moved = {name for name, old in pictures.items() if not torch.equal(old, trained[name])}
    assert moved == {name for name in pictures if "merger" in name or "projector" in name}
    assert not TwoBranches(main, None, freeze_vision=True).train().main.vision.training


def test_the_proxy_sees_no_image_and_no_gradient_crosses(tiny_base: Path, records: list[Record]) -> None:
    main, proxy = Branch.from_base(str(tiny_base)), Branch.from_base(str(tiny_base), sees_images=False)
    branches = TwoBranches(main, proxy, freeze_vision=False)
    batch = micro_batch(Collator(main, proxy)(list(enumerate(records[:2])))["items"], main, proxy)
    assert batch.main["pictures"]
    assert batch.proxy is not None
    assert not batch.proxy["pictures"]
    rewards, _ = branches(batch.main, batch.proxy)
    rewards.sum().backward()
    assert all(parameter.grad is None for parameter in branch_parameters(branches, "proxy"))


def test_the_collator_numbers_pairs_across_records(tiny_base: Path, records: list[Record]) -> None:
    main = Branch.from_base(str(tiny_base))
    batch = micro_batch(Collator(main, None)(list(enumerate(records[:2])))["items"], main, None)
    expected = [*records[0].pairs(), *[(4 + a, 4 + b) for a, b in records[1].pairs()]]
    assert batch.pairs.tolist() == [list(pair) for pair in expected]
    assert len(batch.main["rows"]) == 8
