"""The training loop: the Hugging Face Trainer over two branches that share nothing but the batch.

One optimiser step sees `batch_prompts` prompts with all their responses; the loss is the mean over all their pairs.
The proxy has its own parameter group, schedule and gradient clip, so nothing that it does reaches the main branch but
through the pairs' weights.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from beholder.errors import BeholderError
from beholder_training.branch import Branch
from beholder_training.config import TrainingConfig
from beholder_training.data import Record
from beholder_training.losses import WEIGHTINGS, bradley_terry, weighted_loss
from beholder_training.progress import ProgressBar


class TrainingDiverged(BeholderError):
    """A loss was not finite; the message names the records of the batch."""

    code = "training-diverged"


class TwoBranches(nn.Module):
    """Main branch and proxy (or None) as the one module that the Trainer trains."""

    accepts_loss_kwargs = True  # the loss below is already a mean over the whole optimiser step

    def __init__(self, main: Branch, proxy: Branch | None, freeze_vision: bool) -> None:
        super().__init__()
        self.main = main.model
        self.proxy = proxy.model if proxy else None
        self.frozen = [model.vision for model in (self.main, self.proxy) if model is not None and freeze_vision]
        for tower in self.frozen:
            tower.requires_grad_(False)
        if self.proxy is not None and proxy is not None and not proxy.sees_images:
            self.proxy.vision.requires_grad_(False)  # never called: keep it out of optimiser and clip

    def train(self, mode: bool = True) -> "TwoBranches":
        """A frozen tower stays in eval mode, or its dropout would show chosen and rejected other features."""
        super().train(mode)
        for tower in self.frozen:
            tower.eval()
        return self

    def forward(self, main: dict[str, Any] | None, proxy: dict[str, Any] | None) -> tuple[Tensor | None, Tensor | None]:
        """Rewards (responses,) of each branch whose batch is given."""
        rewards = self.main(**main) if main is not None else None
        proxy_rewards = self.proxy(**proxy) if proxy is not None and self.proxy is not None else None
        return rewards, proxy_rewards


def collator(main: Branch, proxy: Branch | None) -> Callable[[list[Record]], dict[str, Any]]:
    """Records -> {"main": batch, "proxy": batch or None, "pairs": (pairs, 2) response indices, "where": [str]}."""

    def collate(records: list[Record]) -> dict[str, Any]:
        pairs, first = [], 0
        for record in records:
            pairs += [(first + chosen, first + rejected) for chosen, rejected in record.pairs()]
            first += len(record.responses)
        return {
            "main": main.collate(records),
            "proxy": proxy.collate(records) if proxy else None,
            "pairs": torch.tensor(pairs),
            "where": [record.where for record in records],
        }

    return collate


class RewardTrainer(Trainer):
    """Bradley-Terry on all pairs, weighted by how much the proxy fails on each."""

    def __init__(
        self,
        config: TrainingConfig,
        main: Branch,
        proxy: Branch | None,
        warmup: int,
        arguments: TrainingArguments,
        data: list[Record],
    ) -> None:
        """`warmup` is how many steps train the proxy alone before the others."""
        self.config = config
        self.warmup = warmup
        self._sums: dict[str, float] = {}
        super().__init__(
            model=TwoBranches(main, proxy, config.freeze_vision),
            args=arguments,
            train_dataset=data,
            data_collator=collator(main, proxy),
            callbacks=[ClipEachBranch(config.max_grad_norm), ProgressBar(config.output.name)],
        )
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        warming_up = self.state.global_step < self.warmup
        rewards, proxy_rewards = model(None if warming_up else inputs["main"], inputs["proxy"])
        pairs = inputs["pairs"]
        total = num_items_in_batch / self.accelerator.num_processes  # DDP averages over processes
        loss = torch.zeros((), device=pairs.device)
        seen: dict[str, Tensor] = {}
        proxy_margin = _margins(proxy_rewards, pairs)
        if proxy_margin is not None:
            loss = loss + bradley_terry(proxy_margin).sum() / total
            seen |= {"proxy_loss": bradley_terry(proxy_margin), "proxy_accuracy": (proxy_margin > 0).float()}
        margin = _margins(rewards, pairs)
        if margin is not None:
            reference = proxy_margin if proxy_margin is not None else torch.zeros_like(margin)
            weight = WEIGHTINGS[self.config.algorithm](margin.detach(), reference.detach(), self.config.exponent)
            loss = loss + weighted_loss(margin, weight, total)
            seen |= {"main_loss": bradley_terry(margin), "accuracy": (margin > 0).float(), "weight": weight}
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"the loss is {loss.item()} on records {', '.join(inputs['where'])}")
        self._observe(seen)
        return loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Pairs of the whole optimiser step, over all its micro-batches and processes."""
        pairs = torch.tensor(sum(len(batch["pairs"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(pairs).sum()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW; the proxy's parameters are a group of their own."""
        config = self.config
        rates = {"main": config.learning_rate, "proxy": config.proxy_learning_rate or config.learning_rate}
        groups = [
            {"params": parameters, "lr": rates[branch], "name": branch}
            for branch in rates
            if (parameters := branch_parameters(self.model, branch))
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, config.adam_beta2), weight_decay=config.weight_decay)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Each branch warms up and decays over the steps in which it is trained."""
        optimizer = optimizer or self.optimizer
        starts = {"main": self.warmup, "proxy": 0}
        factors = [self._cosine(starts[group["name"]], num_training_steps) for group in optimizer.param_groups]
        self.lr_scheduler = LambdaLR(optimizer, factors)
        return self.lr_scheduler

    def _cosine(self, start: int, end: int) -> Callable[[int], float]:
        warmup = max(self.config.warmup_ratio * (end - start), 1)

        def factor(step: int) -> float:
            done = step - start
            if done < 0:
                return 0.0
            if done < warmup:
                return (done + 1) / warmup if warmup > 1 else 1.0
            return 0.5 * (1 + math.cos(math.pi * min((done - warmup) / max(end - start - warmup, 1), 1)))

        return factor

    def _observe(self, seen: dict[str, Tensor]) -> None:
        for name, values in seen.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(values.detach().sum())
            self._sums[f"{name}/n"] = self._sums.get(f"{name}/n", 0.0) + len(values)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means over the pairs since the last log."""
        means = {name: self._sums[name] / self._sums[f"{name}/n"] for name in self._sums if not name.endswith("/n")}
        self._sums.clear()
        super().log({**logs, **{name: round(mean, 4) for name, mean in means.items()}}, start_time)


def _margins(rewards: Tensor | None, pairs: Tensor) -> Tensor | None:
    """reward(chosen) - reward(rejected) of each pair: (pairs,)."""
    return None if rewards is None else rewards[pairs[:, 0]] - rewards[pairs[:, 1]]


class ClipEachBranch(TrainerCallback):
    """One clip over both branches would let a spiking proxy shrink the main branch's update."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for branch in ("main", "proxy"):
            nn.utils.clip_grad_norm_(branch_parameters(kwargs["model"], branch), self.max_norm)


def branch_parameters(model: Any, branch: str) -> list[nn.Parameter]:
    """The trainable parameters of "main" or "proxy"."""
    module = getattr(getattr(model, "module", model), branch)
    return [parameter for parameter in module.parameters() if parameter.requires_grad] if module is not None else []


def train(config: TrainingConfig, records: Sequence[Record], main: Branch, proxy: Branch | None) -> None:
    """Train `main` in place (and `proxy` beside it) on `records`, each of which has a pair."""
    set_seed(config.seed)
    steps = config.main_steps(len(records))
    warmup = config.proxy_warmup(steps) if proxy else 0
    scratch = config.output.parent / f".{config.output.name}.training"
    arguments = _arguments(config, warmup + steps, scratch)
    RewardTrainer(config, main, proxy, warmup, arguments, list(records)).train()


def _arguments(config: TrainingConfig, max_steps: int, scratch: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(scratch),
        max_steps=max_steps,
        per_device_train_batch_size=config.batch_prompts,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        max_grad_norm=0.0,  # ClipEachBranch
        disable_tqdm=True,  # ProgressBar
        bf16=config.bf16,
        seed=config.seed,
        logging_steps=max(max_steps // 20, 1),
        save_strategy="no",
        report_to=config.report_to or "none",
        remove_unused_columns=False,
        label_names=["pairs"],
        use_cpu=not torch.cuda.is_available(),
    )
