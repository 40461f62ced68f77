"""Each training setting reaches what it sets: branches, objective, optimiser, schedule, forwards, clip, adapters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from beholder.modeling.reward_model import RewardModel
from beholder_training.branches import NAMES, branch_parameters
from beholder_training.data import Record, read_records, with_pairs
from beholder_training.losses import PAIR_LOSSES, WEIGHTINGS, GapSettings
from beholder_training.objective import Objective
from beholder_training.pipeline import make_branches
from beholder_training.runs import train
from beholder_training.trainer import RewardTrainer
from tests.training.runs import config


@pytest.fixture
def records(world: Path) -> list[Record]:
    return with_pairs(read_records([world / "length" / "train.jsonl"]))[:4]


@pytest.mark.parametrize(
    ("settings", "main_sees", "proxy_sees"),
    [
        ({"algorithm": "proxy_balanced"}, True, False),
        ({"algorithm": "sfc"}, True, False),
        ({"algorithm": "sfc", "proxy_input": "blank_image"}, True, True),
        ({"algorithm": "standard"}, True, None),
        ({"algorithm": "standard", "text_only": True}, False, None),
    ],
)
def test_each_branch_has_pictures_or_none(
    settings: dict[str, Any],
    main_sees: bool,
    proxy_sees: bool | None,
    tiny_base: Path,
    tmp_path: Path,
    records: list[Record],
) -> None:
    main, proxy = make_branches(config(tiny_base, tmp_path / "out", **settings))
    assert [bool(group.pictures) for group in main.encode(records[0])] == [main_sees]
    seen = None if proxy is None else bool(proxy.encode(records[0])[0].pictures)
    assert seen is proxy_sees


@pytest.mark.parametrize(
    ("algorithm", "set_to", "steps"), [("proxy_balanced", None, 10), ("sfc", None, 0), ("sfc", 7, 7)]
)
def test_the_proxy_is_warmed_up_for_a_tenth_or_as_set(algorithm: str, set_to: int | None, steps: int) -> None:
    run = config(Path("base"), Path("out"), algorithm=algorithm, proxy_warmup_steps=set_to)
    assert run.proxy_warmup(100) == steps


def test_every_number_has_its_place(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    """No two are alike, so that none can stand in for another."""
    objective = {"algorithm": "sfc", "exponent": 0.7, "pair_loss": "dynamic_scaling", "centring": 0.4, "seed": 5}
    gap = {"gap_strength": 0.3, "gap_rate": 0.2, "label_smoothing": 0.1}
    adam = {"learning_rate": 2e-4, "proxy_learning_rate": 6e-4, "weight_decay": 0.07, "adam_beta2": 0.91}
    settings = config(tiny_base, tmp_path / "out", warmup_ratio=0.25, **objective, **gap, **adam)
    arguments = TrainingArguments(str(tmp_path / "out"), use_cpu=True)
    trainer = RewardTrainer(settings, *make_branches(settings), 20, arguments, records)
    gaps = GapSettings(strength=0.3, rate=0.2, smoothing=0.1)
    scaling = PAIR_LOSSES["dynamic_scaling"]
    assert trainer.criterion == Objective(WEIGHTINGS["sfc"], 0.7, scaling, gaps, centring=0.4, seed=5)
    optimiser, schedule = trainer.create_optimizer(), trainer.create_scheduler(120)
    main, proxy = optimiser.param_groups
    assert (main["name"], main["initial_lr"], proxy["name"], proxy["initial_lr"]) == ("main", 2e-4, "proxy", 6e-4)
    for group in (main, proxy):
        assert (group["betas"], group["weight_decay"]) == ((0.9, 0.91), 0.07)
    seen = []
    for _ in range(120):
        seen.append((main["lr"], proxy["lr"]))
        optimiser.step()
        schedule.step()
    # The main branch starts at step 20 and is warm after a quarter of its 100 steps, the proxy after a quarter of 120.
    assert [seen[step][0] for step in (19, 20, 44)] == pytest.approx([0, 2e-4 / 25, 2e-4])
    assert [seen[step][1] for step in (0, 14, 29)] == pytest.approx([6e-4 / 30, 3e-4, 6e-4])
    assert max(seen[45:]) < seen[44]


def forwards(
    base: Path, output: Path, records: list[Record], of: Callable[[RewardModel], nn.Module], **settings: Any
) -> list[int]:
    """How often that part of the main branch, and of the proxy, is called in one step of all the records."""
    counts = []
    run = config(base, output, algorithm="sfc", steps=1, **settings)
    set_seed(0)
    main, proxy = make_branches(run)
    assert proxy is not None
    for number, branch in enumerate((main, proxy)):
        counts.append(0)

        def count(*_: Any, number: int = number) -> None:
            counts[number] += 1

        of(branch.model).register_forward_pre_hook(count)  # a second forward stops once it has what it is for
    train(run, records, main, proxy)
    return counts


def test_a_checkpointed_layer_is_computed_again_in_the_backward(
    tiny_base: Path, tmp_path: Path, records: list[Record]
) -> None:
    def layer(model: RewardModel) -> nn.Module:
        first: nn.Module = model.backbone.get_submodule("language_model.layers.0")
        return first

    assert forwards(tiny_base, tmp_path / "out", records, layer) == [1, 1]
    assert forwards(tiny_base, tmp_path / "out", records, layer, gradient_checkpointing=True) == [2, 2]


def test_a_token_budget_splits_the_forward(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    assert forwards(tiny_base, tmp_path / "out", records, lambda model: model) == [1, 1]
    assert forwards(tiny_base, tmp_path / "out", records, lambda model: model, token_budget=1) == [4, 4]


def clipped_gradients(base: Path, output: Path, records: list[Record], spike: float) -> dict[str, torch.Tensor]:
    """Each branch's gradient in the first step, as one vector, where the proxy's was multiplied by `spike`."""
    found = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for branch in NAMES:
                each = [parameter.grad for parameter in branch_parameters(kwargs["model"], branch)]
                found[branch] = torch.cat([gradient.flatten() for gradient in each if gradient is not None])

    class Spiking(RewardTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            self.add_callback(Keep())  # after those of the trainer
            loss = super().training_step(model, inputs, num_items_in_batch)
            for parameter in branch_parameters(model, "proxy"):
                if parameter.grad is not None:
                    parameter.grad *= spike
            return loss

    run = config(base, output, algorithm="sfc", steps=1, max_grad_norm=0.01)
    set_seed(0)
    train(run, records, *make_branches(run), Spiking)
    return found


def test_each_branch_has_its_own_gradient_clip(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    calm, spiking = (clipped_gradients(tiny_base, tmp_path / "out", records, spike) for spike in (1, 1000))
    for found in (calm, spiking):
        assert [found[branch].norm().item() for branch in NAMES] == pytest.approx([0.01, 0.01], rel=1e-3)
    assert calm["main"].equal(spiking["main"])


def test_adapters_are_as_set(tiny_base: Path, tmp_path: Path, records: list[Record]) -> None:
    seen: set[tuple[Any, ...]] = set()

    class Looking(RewardTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            for module in model.modules():
                if isinstance(module, LoraLayer):
                    seen.add((module.r["default"], module.lora_alpha["default"], module.lora_dropout["default"].p))
            return super().training_step(model, inputs, num_items_in_batch)

    adapters = {"lora_rank": 2, "lora_alpha": 6, "lora_dropout": 0.25}
    run = config(tiny_base, tmp_path / "out", algorithm="standard", steps=1, **adapters)
    train(run, records, *make_branches(run), Looking)
    assert seen == {(2, 6, 0.25)}
